//! Can an image be replayed with the cable cut, and for which platforms?

use std::collections::{HashMap, HashSet};

use super::error::{Error, Reason};
use super::model::{CheckedImage, CheckedPlatform, MissingPart};
use super::place::Place;
use super::service::Carry;
use super::tree::{Member, Wish};
use crate::oci::{Digest, PlatformPattern, Role};
use crate::registry::desk::Image;

/// What stands for a platform that nobody names.
const UNKNOWN: &str = "unknown";

impl Carry {
    /// Looks at images, or at all images of the named sets. Reads rows, and documents of manifests; asks no upstream.
    ///
    /// With platforms, an image is complete if each of them is; without, if at least one is. Signatures and attestations are told, and
    /// do not count: an image runs without them.
    ///
    /// # Errors
    ///
    /// A text is no name of an image here, there is no set of a name, or the store is in trouble.
    pub async fn check(
        &self,
        images: &[String],
        sets: &[String],
        platforms: &[PlatformPattern],
    ) -> Result<Vec<CheckedImage>, Error> {
        let mut named = Vec::with_capacity(images.len());
        for text in images {
            named.push(self.inner().desk.image(text)?);
        }
        let mut found = Vec::with_capacity(named.len());
        for image in &named {
            found.push(self.check_image(image, platforms).await?);
        }
        for set in sets {
            for member in self.members_named(set).await? {
                let image = self.inner().desk.image(&Place::of(&member).to_string())?;
                found.push(self.check_image(&image, platforms).await?);
            }
        }
        Ok(found)
    }

    async fn check_image(
        &self,
        image: &Image,
        platforms: &[PlatformPattern],
    ) -> Result<CheckedImage, Error> {
        let name = full_name(image);
        let digest = match self.here(image).await? {
            Ok(digest) => digest,
            Err(reason) => return Ok(CheckedImage::unknown(name, reason)),
        };
        // What refers to it may refer to any of its manifests, so the platforms are told apart afterwards.
        let wish = Wish { platforms: platforms.to_vec(), referrers: true };
        let members = self.tree(image.key(), &digest, &wish).await?;
        let mut checked = judged(name, &digest, &members, platforms);
        checked.reason = self.barred(image).await.or(checked.reason);
        Ok(checked)
    }

    /// The revision that an image means here, without asking anybody, or why there is none. A digest is what clients ask for, whatever
    /// the tag in front of it is now.
    pub(super) async fn here(&self, image: &Image) -> Result<Result<Digest, String>, Error> {
        if let Some(digest) = image.digest() {
            let known = self.content().metadata().revision(image.key(), digest).await?;
            return Ok(known
                .map(|_record| *digest)
                .ok_or_else(|| format!("nothing is known of {digest} in {}", image.key())));
        }
        match self.inner().desk.revision_of(image).await {
            Ok(digest) => Ok(Ok(digest)),
            Err(error) if error.reason == Reason::Store => Err(error),
            Err(error) => Ok(Err(error.message)),
        }
    }

    /// Why the image would not be served although it is here.
    async fn barred(&self, image: &Image) -> Option<String> {
        match image.proxied() {
            None => Some(format!(
                "{} is not configured any more, so it would not be served",
                image.key().upstream
            )),
            Some(proxied) => self.proxy().barred(proxied).await,
        }
    }
}

/// In full, with the tag that is meant.
pub(super) fn full_name(image: &Image) -> String {
    match (image.tag(), image.digest(), image.tag_meant()) {
        (None, None, Some(meant)) => format!("{}:{meant}", image.key()),
        _ => image.to_string(),
    }
}

impl CheckedImage {
    fn unknown(image: String, reason: String) -> Self {
        Self {
            image,
            digest: None,
            complete: false,
            platforms: Vec::new(),
            missing: Vec::new(),
            bytes_present: 0,
            bytes_missing: 0,
            referrers: 0,
            reason: Some(reason),
        }
    }
}

/// What the objects of an image come to.
fn judged(
    image: String,
    digest: &Digest,
    members: &[Member],
    wanted: &[PlatformPattern],
) -> CheckedImage {
    let by_digest = by_digest(members);
    let platforms = platforms_among(members, &by_digest);
    let lacking = lacking(&platforms, wanted);
    let complete = match wanted {
        [] => platforms.iter().any(|platform| platform.complete),
        _ => lacking.is_empty() && platforms.iter().all(|platform| platform.complete),
    };
    let (present, missing): (Vec<&Member>, Vec<&Member>) =
        members.iter().partition(|member| member.present);
    let whole = |member: &&&Member| {
        member.of_referrer
            && member.is_manifest
            && member.children.iter().all(|child| is_here(&by_digest, child))
    };
    CheckedImage {
        image,
        digest: Some(digest.to_string()),
        // Nothing can be asked for without the index itself.
        complete: complete && members.first().is_some_and(|root| root.present),
        platforms,
        bytes_present: bytes(&present),
        bytes_missing: bytes(&missing),
        referrers: u64::try_from(present.iter().filter(whole).count()).unwrap_or(u64::MAX),
        missing: missing.into_iter().map(missing_part).collect(),
        reason: (!lacking.is_empty()).then(|| format!("it has no {}", lacking.join(", no "))),
    }
}

fn platform(member: &Member, by_digest: &HashMap<Digest, &Member>) -> CheckedPlatform {
    let children = member.children.iter().filter_map(|child| by_digest.get(child).copied());
    let mut seen = HashSet::new();
    let below = children.filter(|child| seen.insert(child.digest));
    let (present, missing): (Vec<&Member>, Vec<&Member>) =
        std::iter::once(member).chain(below).partition(|part| part.present);
    CheckedPlatform {
        platform: member.platform.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
        digest: member.digest.to_string(),
        complete: missing.is_empty(),
        bytes_present: bytes(&present),
        bytes_missing: bytes(&missing),
    }
}

/// The patterns that none of the platforms fits. What names no platform fits all of them.
pub(super) fn lacking(platforms: &[CheckedPlatform], wanted: &[PlatformPattern]) -> Vec<String> {
    let fits = |pattern: &PlatformPattern| {
        let mut texts = platforms.iter().map(|platform| platform.platform.as_str());
        texts.any(|text| text == UNKNOWN || pattern.matches_text(text))
    };
    wanted.iter().filter(|pattern| !fits(pattern)).map(ToString::to_string).collect()
}

fn is_here(by_digest: &HashMap<Digest, &Member>, digest: &Digest) -> bool {
    by_digest.get(digest).is_some_and(|member| member.present)
}

fn bytes(members: &[&Member]) -> u64 {
    members.iter().filter_map(|member| member.size).fold(0, u64::saturating_add)
}

fn missing_part(member: &Member) -> MissingPart {
    let role = match member.role {
        _ if member.of_referrer => "referrer",
        Some(Role::Config) => "config",
        Some(Role::Layer) => "layer",
        Some(Role::Child) | None if member.is_index() => "index",
        Some(Role::Child) | None => "manifest",
    };
    MissingPart {
        digest: member.digest.to_string(),
        role: role.to_owned(),
        platform: member.platform.clone(),
        size: member.size,
        state: member.lack().to_owned(),
    }
}

/// The platforms of an image by its objects, for those who fetch.
pub(super) fn platforms_of(members: &[Member]) -> Vec<CheckedPlatform> {
    platforms_among(members, &by_digest(members))
}

fn by_digest(members: &[Member]) -> HashMap<Digest, &Member> {
    members.iter().map(|member| (member.digest, member)).collect()
}

fn platforms_among(
    members: &[Member],
    by_digest: &HashMap<Digest, &Member>,
) -> Vec<CheckedPlatform> {
    let runnable =
        |member: &&Member| member.is_manifest && !member.of_referrer && !member.is_index();
    members.iter().filter(runnable).map(|member| platform(member, by_digest)).collect()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
