//! A number as decimal text without an allocation; `format!` costs more than the rest of a header.

/// Digits of the largest number.
pub(super) const DIGITS_MAX: usize = 20;

/// The text of one number.
#[derive(Debug)]
pub(super) struct Decimal {
    digits: [u8; DIGITS_MAX],
    /// Where they begin.
    start: usize,
}

impl Decimal {
    pub(super) fn of(number: u64) -> Self {
        let mut text = Self { digits: [b'0'; DIGITS_MAX], start: DIGITS_MAX };
        let mut rest = number;
        loop {
            let [digit, ..] = (rest % 10).to_le_bytes();
            text.start -= 1;
            text.digits[text.start] = b'0' + digit;
            rest /= 10;
            if rest == 0 {
                return text;
            }
        }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.digits[self.start..]).expect("digits are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_format_writes_it() {
        let tens =
            (0..DIGITS_MAX).map(|power| 10_u64.saturating_pow(u32::try_from(power).unwrap()));
        for number in tens.flat_map(|ten| [ten - 1, ten, ten + 1]).chain([u64::MAX]) {
            assert_eq!(Decimal::of(number).as_str(), number.to_string());
        }
    }
}
