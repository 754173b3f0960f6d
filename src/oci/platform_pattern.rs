//! Which platforms are meant: `os/architecture[/variant]`, as docker writes it.

use std::fmt;
use std::str::FromStr;

use super::descriptor::Platform;

/// Longest text of a platform.
const PLATFORM_BYTES_MAX: usize = 128;

/// A platform that somebody asks for. Without a variant, every variant is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlatformPattern {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// The text names no platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPlatform;

impl PlatformPattern {
    /// The platform that containers of this machine have.
    pub fn of_this_machine() -> Self {
        let architecture = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else if cfg!(target_arch = "aarch64") {
            "arm64"
        } else if cfg!(target_arch = "arm") {
            "arm"
        } else if cfg!(target_arch = "riscv64") {
            "riscv64"
        } else if cfg!(target_arch = "s390x") {
            "s390x"
        } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
            "ppc64le"
        } else {
            "unknown"
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    pub fn matches(&self, platform: &Platform) -> bool {
        let architecture = &self.architecture;
        let same_variant = self.variant.is_none()
            || variant(architecture, self.variant.as_deref())
                == variant(architecture, platform.variant.as_deref());
        self.os == platform.os && *architecture == platform.architecture && same_variant
    }

    /// The same for a platform that [`Platform`] wrote as text, whatever characters it has.
    pub fn matches_text(&self, platform: &str) -> bool {
        let mut parts = platform.splitn(3, '/').map(str::to_owned);
        let (Some(os), Some(architecture)) = (parts.next(), parts.next()) else {
            return false;
        };
        self.matches(&Platform { os, architecture, variant: parts.next() })
    }
}

/// What containerd makes of a variant (platforms, `normalizeArch`): some are what an architecture is without one.
fn variant<'a>(architecture: &str, variant: Option<&'a str>) -> Option<&'a str> {
    match (architecture, variant) {
        ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) => None,
        ("arm", None | Some("7")) => Some("v7"),
        (_, variant) => variant,
    }
}

impl FromStr for PlatformPattern {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let plain = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if text.len() > PLATFORM_BYTES_MAX || !parts.iter().all(plain) {
            return Err(InvalidPlatform);
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(InvalidPlatform),
        };
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

impl fmt::Display for PlatformPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl fmt::Display for InvalidPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("want os/architecture[/variant], such as linux/amd64 or linux/arm/v7")
    }
}

impl std::error::Error for InvalidPlatform {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_without_a_variant_means_all_of_them() {
        let is = |os: &str, architecture: &str, variant: Option<&str>| Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        };
        let arm: PlatformPattern = "linux/arm".parse().unwrap();
        assert!(
            arm.matches(&is("linux", "arm", Some("v7"))) && arm.matches(&is("linux", "arm", None))
        );
        assert!(
            !arm.matches(&is("linux", "arm64", None)) && !arm.matches(&is("windows", "arm", None))
        );
        let v7: PlatformPattern = "linux/arm/v7".parse().unwrap();
        assert!(
            v7.matches(&is("linux", "arm", Some("v7")))
                && !v7.matches(&is("linux", "arm", Some("v6")))
        );
        assert!(v7.matches(&is("linux", "arm", None)), "that is what it means");
        let v8: PlatformPattern = "linux/arm64/v8".parse().unwrap();
        assert!(
            v8.matches(&is("linux", "arm64", None))
                && v8.matches(&is("linux", "arm64", Some("v8")))
                && !v8.matches(&is("linux", "arm64", Some("v9")))
        );
        assert_eq!(v7.to_string(), "linux/arm/v7");
        assert!(arm.matches_text("linux/arm/v7") && !v7.matches_text("linux/arm/v6"));
        assert!(!v7.matches_text("linux/arm64"));
        assert!(!arm.matches_text("unknown"));
        assert!(arm.matches_text("linux/arm/v7+x"), "indexes are written by others");
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/am d64", "linux/ä"]
        {
            assert_eq!(text.parse::<PlatformPattern>(), Err(InvalidPlatform), "{text}");
        }
        assert!(format!("linux/{}", "x".repeat(200)).parse::<PlatformPattern>().is_err());
    }
}
