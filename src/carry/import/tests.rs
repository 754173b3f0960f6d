//! What a tar may be, header by header.

use super::tar::{Archive, Broken, Kind, Member};

/// A member with these fields, and its bytes.
fn member(name: &str, kind: ::tar::EntryType, size: u64, bytes: &[u8]) -> Vec<u8> {
    let mut header = ::tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        // The length counts itself.
        let length = (1..=4)
            .map(|digits| rest.len() + digits)
            .find(|length| length.to_string().len() + rest.len() == *length);
        text.push_str(&format!("{}{rest}", length.unwrap()));
    }
    member("pax", ::tar::EntryType::XHeader, text.len() as u64, text.as_bytes())
}

fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    member(name, ::tar::EntryType::Regular, bytes.len() as u64, bytes)
}

/// All members with their bytes.
fn read(tar: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, String> {
    let words = |broken| match broken {
        Broken::Bad(why) => why,
        Broken::Stream(error) => error.to_string(),
    };
    let mut archive = Archive::new(tar);
    let mut members = Vec::new();
    while let Some(member) = archive.next().map_err(words)? {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 7]);
        loop {
            match archive.read(&mut buffer).map_err(words)? {
                0 => break,
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
        members.push((member, bytes));
    }
    Ok(members)
}

const END: [u8; 1024] = [0; 1024];

#[test]
fn pax_records_give_names_and_sizes() {
    let long = format!("blobs/sha512/{}", "ab".repeat(64));
    // The header says nothing of the size, as where it has more digits than a header holds.
    let sized = member("short", ::tar::EntryType::Regular, 0, b"twelve bytes");
    let tar = [
        pax(&[("path", &long), ("size", "12"), ("mtime", "1.5")]),
        sized,
        file("next", b"x"),
        END.to_vec(),
    ];
    let members = read(&tar.concat()).unwrap();
    assert_eq!(members[0].0, Member { name: long, kind: Kind::File, size: 12 });
    assert_eq!(members[0].1, b"twelve bytes");
    assert_eq!((members[1].0.name.as_str(), members.len()), ("next", 2));
}

#[test]
fn what_is_no_tar_is_told_with_the_member_before_it() {
    let good = file("first", b"bytes");
    for (rest, says) in [
        (pax(&[("size", "many")]), "no number"),
        (pax(&[("GNU.sparse.name", "x")]).into_iter().chain(file("y", b"")).collect(), "sparse"),
        (member("d", ::tar::EntryType::Directory, 3, b"abc"), "no bytes"),
        (member("g", ::tar::EntryType::XGlobalHeader, 9, b"9 path=x\n"), "global"),
        (member("l", ::tar::EntryType::Symlink, 0, b""), "names nothing"),
        (member("p", ::tar::EntryType::XHeader, 1 << 40, b""), "longer than any name"),
        (b"x".repeat(512), "no tar"),
        (pax(&[("a", "b")]).repeat(9), "too many headers"),
        (b"0 path=x\n".to_vec(), "no tar"),
    ] {
        let error = read(&[&good[..], &rest, &END].concat()).unwrap_err();
        assert!(error.contains(says), "{error:?} says nothing of {says:?}");
    }
    for cut in [1, 511, 513, good.len() - 1, good.len(), good.len() + 1] {
        let whole = [&good[..], &END].concat();
        assert!(read(&whole[..cut]).is_err(), "{cut}");
    }
    // One block of zeros is an end, too.
    assert_eq!(read(&[&good[..], &END[..512]].concat()).unwrap().len(), 1);
}

#[test]
fn whatever_the_bytes_are_it_ends() {
    let good = [
        pax(&[("path", "blobs/x")]),
        file("first", b"bytes"),
        file("second", &[7; 600]),
        END.to_vec(),
    ]
    .concat();
    for at in 0..good.len() {
        for bit in [0, 7] {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            drop(read(&bad));
        }
    }
}
