//! Real registries as sets of switches, where they differ from a plain one. Sources: the project's notes on upstreams.

use super::auth::{Hidden, Mode, Realm, Rejection, Scope, TokenBody};
use super::message::{Framing, Reply};
use super::rules::{Then, When};
use super::state::{
    AcceptMode, BlobHead, Delivery, LinkForm, LocationForm, ReferrersMode, StoreAuth,
};
use super::{Edit, Fake, Kind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Hub,
    Ghcr,
    Quay,
    /// Wants a login: user `AWS` with the password that the test names.
    Ecr,
    EcrPublic,
    Google,
    Mcr,
    Acr,
    Kubernetes,
    Harbor,
    Artifactory,
    Nexus,
    Forgejo,
    Istio,
}

impl Profile {
    /// Those that need no login.
    pub const ALL: [Self; 13] = [
        Self::Hub,
        Self::Ghcr,
        Self::Quay,
        Self::EcrPublic,
        Self::Google,
        Self::Mcr,
        Self::Acr,
        Self::Kubernetes,
        Self::Harbor,
        Self::Artifactory,
        Self::Nexus,
        Self::Forgejo,
        Self::Istio,
    ];

    pub fn apply(self, fake: &Fake) {
        match self {
            Self::Hub => hub(fake),
            Self::Ghcr => ghcr(fake),
            Self::Quay => quay(fake),
            Self::Ecr => ecr(fake),
            Self::EcrPublic => ecr_public(fake),
            Self::Google => google(fake),
            Self::Mcr => mcr(fake),
            Self::Acr => acr(fake),
            Self::Kubernetes => kubernetes(fake),
            Self::Harbor => harbor(fake),
            Self::Artifactory => artifactory(fake),
            Self::Nexus => nexus(fake),
            Self::Forgejo => forgejo(fake),
            Self::Istio => istio(fake),
        }
    }
}

fn redirect(status: u16, form: LocationForm) -> Delivery {
    Delivery::Redirect { status, form }
}

fn hub(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.service = Some("registry.docker.io".to_owned());
        auth.hidden = Hidden::Unauthorized;
    });
    fake.switch(|switch| {
        switch.delivery = redirect(307, LocationForm::Absolute);
        switch.accept = AcceptMode::FirstChild;
        switch.referrers = ReferrersMode::Status(404);
        switch.ratelimit = Some(100);
    });
}

fn ghcr(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.realm = Realm::Relative;
        auth.ping_scope = Some("repository:user/image:pull".to_owned());
        auth.token_body = TokenBody::TokenOnly;
        auth.hidden = Hidden::Denied;
    });
    fake.switch(|switch| {
        switch.delivery = redirect(307, LocationForm::Absolute);
        switch.get_only_urls = true;
        switch.accept = AcceptMode::NotFound;
        switch.referrers = ReferrersMode::RedirectForeign;
    });
}

fn quay(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.token_body = TokenBody::TokenOnly;
        auth.hidden = Hidden::Unauthorized;
    });
    fake.switch(|switch| {
        switch.delivery = redirect(302, LocationForm::Absolute);
        switch.single_use_urls = true;
        switch.keep_alive = false;
        switch.link = LinkForm::Absolute;
        switch.tags_page = Some(100);
        switch.referrers = ReferrersMode::Status(400);
    });
    fake.rule(When::manifest().get().once(), Then::status(502));
    fake.rule(When::blob().get().once(), Then::status(503));
}

fn ecr(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Basic;
        auth.rejection = Rejection::Denied;
        auth.hidden = Hidden::NameUnknown;
    });
    fake.switch(|switch| {
        switch.delivery = redirect(307, LocationForm::Absolute);
        switch.no_digest_on_get = true;
    });
    fake.rule(When::kind(Kind::Tags), Then::set("Content-Type", "text/plain"));
}

fn ecr_public(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.rejection = Rejection::BadRequest;
        auth.uses = Some(4);
    });
    fake.switch(|switch| {
        switch.delivery = redirect(307, LocationForm::Absolute);
        switch.blob_head = BlobHead::Status(401);
        switch.no_digest_on_get = true;
    });
    fake.rule(When::kind(Kind::Tags), Then::set("Content-Type", "text/plain"));
}

fn google(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::NoHeaderExceptPing;
        auth.post = Some(404);
    });
    fake.switch(|switch| switch.delivery = redirect(302, LocationForm::Relative));
}

fn mcr(fake: &Fake) {
    fake.switch(|switch| switch.delivery = redirect(307, LocationForm::Absolute));
    fake.rule(When::any().head(), Then::Drop { reset: false });
}

fn acr(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.realm = Realm::Own;
        auth.token_body = TokenBody::AccessTokenOnly;
    });
    fake.switch(|switch| {
        switch.delivery = redirect(307, LocationForm::Absolute);
        switch.store_auth = StoreAuth::Azure;
    });
}

fn kubernetes(fake: &Fake) {
    fake.switch(|switch| {
        switch.delivery = redirect(307, LocationForm::SchemeRelative);
        switch.manifests_elsewhere = true;
    });
    fake.rule(When::kind(Kind::Catalog), Then::status(404));
}

fn harbor(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.service = Some("harbor-registry".to_owned());
        auth.token_body = TokenBody::EmptyAccessToken;
        auth.rejection = Rejection::BasicOnly;
        auth.hidden = Hidden::NotFound;
        auth.uses = Some(5);
    });
    fake.switch(|switch| switch.blob_head = BlobHead::NotFoundUntilGet);
    let edits = vec![Edit::Framing(Framing::Chunked), Edit::Header("Docker-Content-Digest", None)];
    fake.rule(When::blob().get(), Then::Alter(edits));
}

fn artifactory(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.realm = Realm::PerRepository;
        auth.scope = Scope::WithoutFirstComponent;
        auth.post = Some(401);
    });
}

fn nexus(fake: &Fake) {
    fake.rule(When::manifest().head(), Then::status(404));
}

fn forgejo(fake: &Fake) {
    fake.auth(|auth| {
        auth.mode = Mode::BearerAndBasicOneLine;
        auth.realm = Realm::Relative;
        auth.token_body = TokenBody::TokenOnly;
    });
}

fn istio(fake: &Fake) {
    fake.switch(|switch| switch.blob_head = BlobHead::NoLength);
    fake.rule(When::kind(Kind::Ping), Then::reply(Reply::html(200)));
}
