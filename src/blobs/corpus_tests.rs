//! The corpus of records of unfinished downloads, and what must hold for every record made from it.

use proptest::prelude::*;

use super::record::{RECORD_BYTES_MAX, Record};
use crate::corpus as reader;

#[test]
fn records_of_the_corpus() {
    reader::walk("record", |bytes| reader::accepted(Record::decode(bytes).is_some()));
}

proptest! {
    #[test]
    fn what_is_read_is_written_alike(bytes in reader::mutated("record")) {
        if let Some(record) = Record::decode(&bytes) {
            prop_assert!(bytes.len() <= RECORD_BYTES_MAX);
            prop_assert!(Record::is_valid(record.size, &record.present));
            prop_assert_eq!(record.encode(), bytes);
        }
    }
}
