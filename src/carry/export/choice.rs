//! Which objects of an image go into a bundle, decided from its tree alone.
//!
//! What must hold: what is chosen is whole, from its root down to the last layer that anybody expects to be here; a platform that is not
//! complete is left out if none was asked for by name, and refuses the image if it was.

use std::collections::{BTreeSet, HashMap};

use crate::carry::tree::Member;
use crate::oci::{Digest, MediaType, PlatformPattern, Role};

use super::documents::Loadable;

/// What docker can unpack begins so.
const DOCKER_LAYERS: [&str; 2] =
    ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"];
/// The configurations that docker can run.
const DOCKER_CONFIGS: [&str; 2] =
    [MediaType::OCI_CONFIG, "application/vnd.docker.container.image.v1+json"];

/// What of an image goes into a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// In the order of the index; `unknown` where nobody says.
    pub(super) platforms: Vec<String>,
    /// The image and everything below it.
    pub(super) objects: BTreeSet<Digest>,
    /// What docker would run of it.
    pub(super) loadable: Option<Loadable>,
}

/// Why an image is in no bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    /// `absent`, `damaged`, `removed`, or `unknown` for a platform that the image does not have.
    pub(super) state: &'static str,
    pub(super) what: String,
}

/// The tree of an image, to be looked into.
#[derive(Debug)]
pub(super) struct Tree {
    root: Digest,
    members: HashMap<Digest, Member>,
}

impl Tree {
    /// The first member is the image itself.
    pub(super) fn new(root: Digest, members: Vec<Member>) -> Self {
        let members = members.into_iter().map(|member| (member.digest, member));
        Self { root, members: members.collect() }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&Member> {
        self.members.get(digest)
    }

    /// Manifests that nothing in the tree lists, and that refer to something in it, by digest.
    pub(super) fn referrers(&self) -> BTreeSet<Digest> {
        let roots = self.members.values().filter(|member| member.role.is_none());
        roots.map(|member| member.digest).filter(|digest| *digest != self.root).collect()
    }

    /// What belongs to the image itself.
    ///
    /// # Errors
    ///
    /// What is missing, or which platforms there are not.
    pub(super) fn choose(
        &self,
        wanted: &[PlatformPattern],
        with_attestations: bool,
    ) -> Result<Choice, Vec<Lack>> {
        let Some(root) = self.get(&self.root).filter(|root| root.present) else {
            return Err(vec![self.lack(&self.root)]);
        };
        let is_index = root.is_index();
        let images: Vec<&Member> = match is_index {
            true => {
                let children = self.children(root);
                children.filter(|child| !child.of_referrer && !is_hollow(child)).collect()
            }
            false => vec![root],
        };
        let unknown = wanted.iter().filter(|pattern| {
            !images
                .iter()
                .any(|image| image.platform.as_deref().is_none_or(|is| pattern.matches_text(is)))
        });
        let unknown: Vec<Lack> = unknown
            .map(|pattern| Lack { state: "unknown", what: format!("it is not for {pattern}") })
            .collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        if images.is_empty() {
            let what = format!("index {} lists no image", self.root);
            return Err(vec![Lack { state: "unknown", what }]);
        }
        let (whole, broken): (Vec<&Member>, Vec<&Member>) =
            images.into_iter().partition(|image| self.missing(&image.digest).is_empty());
        if !broken.is_empty() && (whole.is_empty() || !wanted.is_empty()) {
            let missing: BTreeSet<Digest> =
                broken.iter().flat_map(|image| self.missing(&image.digest)).collect();
            return Err(missing.iter().map(|digest| self.lack(digest)).collect());
        }
        let mut choice = Choice { loadable: self.loadable(&whole, wanted), ..Choice::default() };
        choice.objects.insert(self.root);
        for image in whole {
            let platform = image.platform.clone().unwrap_or_else(|| "unknown".to_owned());
            if !choice.platforms.contains(&platform) {
                choice.platforms.push(platform);
            }
            choice.objects.extend(self.below(&image.digest));
        }
        if with_attestations && is_index {
            for attestation in self.children(root).filter(|child| child.of_referrer) {
                let about = attestation.platform.as_ref();
                let named = about.is_some_and(|platform| choice.platforms.contains(platform));
                if named && self.missing(&attestation.digest).is_empty() {
                    choice.objects.extend(self.below(&attestation.digest));
                }
            }
        }
        Ok(choice)
    }

    /// A manifest with everything below it, itself first; `None` if something of it is missing, or if it is an index of nothing, as
    /// clients leave it under the tag for referrers when the last one goes.
    pub(super) fn whole(&self, digest: &Digest) -> Option<Vec<Digest>> {
        let whole = self.missing(digest).is_empty() && !self.get(digest).is_some_and(is_hollow);
        whole.then(|| self.below(digest))
    }

    fn children<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = &'a Member> {
        member.children.iter().filter_map(|digest| self.get(digest))
    }

    /// Everything below, itself first, each once. What is in no tree is a foreign layer that nobody expects to be here.
    fn below(&self, digest: &Digest) -> Vec<Digest> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::from([*digest]));
        let mut open: Vec<&Member> = self.get(digest).into_iter().collect();
        while let Some(member) = open.pop() {
            found.push(member.digest);
            open.extend(self.children(member).filter(|child| seen.insert(child.digest)));
        }
        found
    }

    fn missing(&self, digest: &Digest) -> Vec<Digest> {
        let present = |digest: &Digest| self.get(digest).is_some_and(|member| member.present);
        if self.get(digest).is_none() {
            return vec![*digest];
        }
        self.below(digest).into_iter().filter(|digest| !present(digest)).collect()
    }

    fn lack(&self, digest: &Digest) -> Lack {
        let member = self.get(digest);
        let state = member.map_or("absent", Member::lack);
        let role = match member.map(|member| (member.role, &member.media_type)) {
            Some((Some(Role::Config), _)) => "configuration",
            Some((Some(Role::Layer), _)) => "layer",
            Some((_, Some(media_type))) if media_type.is_index() => "index",
            _ => "manifest",
        };
        let platform = member.and_then(|member| member.platform.as_deref());
        let platform = platform.map(|platform| format!(" of {platform}")).unwrap_or_default();
        Lack { state, what: format!("{role} {digest}{platform}") }
    }

    /// The image for docker: of the first platform that was asked for, or this machine's, or the first.
    fn loadable(&self, images: &[&Member], wanted: &[PlatformPattern]) -> Option<Loadable> {
        let here = [PlatformPattern::of_this_machine()];
        let wanted = if wanted.is_empty() { &here[..] } else { wanted };
        let mut preferred = wanted.iter().filter_map(|pattern| {
            let is = |image: &&&Member| {
                image.platform.as_deref().is_some_and(|is| pattern.matches_text(is))
            };
            images.iter().find(is)
        });
        let image = preferred.next().or(images.first())?;
        let (mut config, mut layers) = (None, Vec::new());
        for digest in &image.children {
            let member = self.get(digest)?;
            let media_type = member.media_type.as_ref().map_or("", MediaType::essence);
            match member.role {
                Some(Role::Config) if config.is_none() && DOCKER_CONFIGS.contains(&media_type) => {
                    config = Some(member.digest);
                }
                Some(Role::Layer)
                    if DOCKER_LAYERS.iter().any(|begins| media_type.starts_with(begins)) =>
                {
                    layers.push(member.digest);
                }
                _ => return None,
            }
        }
        // A foreign layer that is not here is in no tree, and docker wants all of them.
        let config = config.filter(|_| !layers.is_empty())?;
        Some(Loadable { config, layers })
    }
}

/// Is it an index that is here and lists nothing that is meant? A bundle with one would be refused where it is taken in.
fn is_hollow(member: &Member) -> bool {
    member.is_index() && member.present && member.children.is_empty()
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
