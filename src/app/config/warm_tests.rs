//! Lists of images that are followed: what they may say, and what is wrong with them.

use std::path::Path;
use std::time::Duration;

use super::{Config, ConfigErrors, Sources, document};
use crate::carry::{SCHEDULE_EVERY_DEFAULT, Schedule};

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    Config::assemble(&sources, document::parse(Path::new("test.toml"), text))
}

fn mistakes(text: &str, environment: &[(&str, &str)]) -> String {
    load(text, environment).expect_err("the file must be refused").to_string()
}

#[test]
fn lists_come_in_their_order_from_the_file_and_the_environment() {
    let text = "[[warm]]\nimages = [\"nginx:1\", \"xy.pkg.dev/p/r\"]\n\n\
                [[warm]]\nimages = [\"ghcr.io/org/app\"]\nevery = \"10m\"\n\
                platforms = [\"linux/arm/v7\"]\nreferrers = true\n";
    let environment =
        [("ROADSTEAD_WARM__1__EVERY", "20m"), ("ROADSTEAD_WARM__7__IMAGES", "quay.io/a/b:1,redis")];
    let config = load(text, &environment).unwrap();
    let list = |images: &[&str]| Schedule {
        images: images.iter().map(|image| (*image).to_owned()).collect(),
        ..Schedule::default()
    };
    let second = Schedule {
        every: Duration::from_secs(1200),
        platforms: vec!["linux/arm/v7".parse().unwrap()],
        referrers: true,
        ..list(&["ghcr.io/org/app"])
    };
    let wanted = [list(&["nginx:1", "xy.pkg.dev/p/r"]), second, list(&["quay.io/a/b:1", "redis"])];
    assert_eq!(config.schedules, wanted);
    assert_eq!(config.schedules[0].every, SCHEDULE_EVERY_DEFAULT);
    assert_eq!(Config::default().schedules, []);
}

#[test]
fn what_is_wrong_with_a_list_is_told_with_its_line() {
    for (text, line, said) in [
        ("warm = [\"nginx\"]\n", 1, "want a table"),
        ("[warm]\nimages = [\"nginx\"]\n", 1, "two brackets"),
        ("[[warm]]\nevery = \"6h\"\n", 2, "names no images"),
        ("[[warm]]\n", 1, "names no images"),
        ("[[warm]]\nimages = []\n", 2, "no images"),
        ("[[warm]]\nimages = [\"nginx 1\"]\n", 2, "is no image"),
        ("[[warm]]\nimages = [\"docker://nginx\"]\n", 2, "scheme"),
        ("[[warm]]\nimages = [\"dcoker.io/a/b\"]\n", 2, "dcoker.io is no registry"),
        ("[[warm]]\nimages = [\"a\"]\nevery = \"1s\"\n", 3, "60 s"),
        ("[[warm]]\nimages = [\"a\"]\nplatforms = [\"amd64\"]\n", 3, "os/architecture"),
        ("[[warm]]\nimages = [\"a\"]\nplatform = [\"linux/amd64\"]\n", 3, "`platforms`"),
        ("[[warm]]\nimages = [\"a\"]\nlisten = \"x\"\n", 3, "outside"),
        ("images = [\"a\"]\n", 1, "in [[warm]]"),
    ] {
        let told = mistakes(text, &[]);
        assert!(told.contains(&format!("test.toml:{line}")) && told.contains(said), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    let told = mistakes("", &[("ROADSTEAD_WARM__0__IMAGE", "nginx")]);
    assert!(told.contains("ROADSTEAD_WARM__0__IMAGES"), "{told}");
    let told = mistakes("", &[("ROADSTEAD_WARM__0__EVERY", "6h")]);
    assert!(told.contains("names no images"), "{told}");
}
