//! Images that a command is about: those of the command line, and those of a file, with the lines at which it names them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::app::images::{ImageList, InvalidList};
use crate::oci::LOCKFILE_BYTES_MAX;

/// What is standard input among the files.
const STDIN: &str = "-";

/// All images that the arguments name: the file's first, which keep the numbers of their lines.
///
/// # Errors
///
/// The file cannot be read or is no list; says which, and the line. An argument is not one name: what is empty, because a variable of a
/// script is, would be a list of nothing, and success.
pub(super) fn images(arguments: &[String], file: Option<&Path>) -> Result<ImageList, String> {
    let mut list = match file {
        Some(file) => read(file)?,
        None => ImageList::default(),
    };
    let is_one = |text: &String| {
        let list = ImageList::read(text);
        list.is_ok_and(|list| matches!(&list.lines[..], [(_, name)] if name == text))
    };
    if let Some(text) = arguments.iter().find(|text| !is_one(text)) {
        return Err(format!("{text:?} is no image; want one name, such as nginx:1.27"));
    }
    let last = list.lines.last().map_or(0, |(line, _)| *line);
    list.lines.extend(
        ImageList::of(arguments.iter().cloned())
            .lines
            .into_iter()
            .map(|(place, name)| (last + place, name)),
    );
    Ok(list)
}

/// A list as a text in which each image stands in its line.
pub(super) fn text(list: &ImageList) -> String {
    let (mut text, mut at) = (String::new(), 1);
    for (line, name) in &list.lines {
        while at < *line {
            text.push('\n');
            at += 1;
        }
        text.push_str(name);
    }
    text
}

fn read(file: &Path) -> Result<ImageList, String> {
    let (name, text) = if file == Path::new(STDIN) {
        ("standard input".to_owned(), whole(io::stdin().lock()))
    } else {
        (file.display().to_string(), File::open(file).and_then(whole))
    };
    let text = text.map_err(|error| format!("{name}: {error}"))?;
    let list = ImageList::read(&text);
    list.map_err(|InvalidList { line, reason }| format!("{name}: line {line}: {reason}"))
}

/// No more than a list may have, and one byte, so that a longer one is told.
fn whole(source: impl Read) -> io::Result<String> {
    let limit = u64::try_from(LOCKFILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    source.take(limit).read_to_end(&mut bytes)?;
    let invalid = |_invalid| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text");
    String::from_utf8(bytes).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_and_arguments_are_one_list() {
        let home = tempfile::TempDir::new().unwrap();
        let file = home.path().join("images.txt");
        fs::write(&file, "# ours\n\nnginx:1 # web\nredis\n").unwrap();
        let list = images(&["app:1".to_owned()], Some(&file)).unwrap();
        let wanted = [(3, "nginx:1"), (4, "redis"), (5, "app:1")];
        assert_eq!(list.lines, wanted.map(|(line, name)| (line, name.to_owned())));
        assert_eq!(text(&list), "\n\nnginx:1\nredis\napp:1");
        assert_eq!(ImageList::read(&text(&list)), Ok(list));
        assert_eq!(text(&images(&["a".to_owned(), "b".to_owned()], None).unwrap()), "a\nb");

        for text in ["", " ", "#x", "nginx 1", "nginx #x", "a\nb", "roadstead-lock"] {
            let refusal = images(&[text.to_owned()], None).unwrap_err();
            assert!(refusal.contains("want one name"), "{refusal}");
        }

        fs::write(&file, "nginx 1\n").unwrap();
        let refusal = images(&[], Some(&file)).unwrap_err();
        assert!(refusal.contains("images.txt: line 1: "), "{refusal}");
        fs::write(&file, b"\xff").unwrap();
        assert!(images(&[], Some(&file)).unwrap_err().contains("UTF-8"));
        assert!(images(&[], Some(&home.path().join("no"))).unwrap_err().contains("no: "));
    }
}
