//! Who may read what: the operator's globs, repositories that are private upstream, and the proof that a repository holds a digest.
//!
//! What must hold (design promise 12): the cache widens nobody's access. A repository serves a digest only if upstream showed it
//! there; behind a credential of ours only repositories that anybody may read are served, unless the operator said `shared`, and
//! then proofs carry the credential and are renewed. An outage is bridged with the last verdict, never with none.

use std::sync::Arc;

use super::error::Error;
use super::settings::{PROOF_FOR, Private};
use super::shared::Shared;
use super::source::Proxied;
use crate::clock::Timestamp;
use crate::metadata::{CredentialFingerprint, Proof};
use crate::oci::{Digest, Reference};
use crate::upstream::{self, Spending};

/// The credential of a proof when nobody knows whose it is, because a helper has not said so: it is nobody's, so upstream is asked.
const UNKNOWN: CredentialFingerprint = [0; 16];

impl Proxied {
    /// The proof to record for what the operator himself brings under this repository. Where our credential opens private repositories,
    /// it is bound to that, as it would be for a pull at this moment, unless he says that anybody may read the repository (`public`).
    pub async fn proof_of_import(&self, at: Timestamp, public: bool) -> Proof {
        let mut credential = None;
        if self.policy().private == Private::Shared && !public {
            self.upstream().settle_credential(self.policy().tags.wait_recent).await;
            credential = self.upstream().credential_fingerprint();
            if self.upstream().is_unsettled() {
                credential = Some(UNKNOWN);
            }
        }
        Proof { proved: at, credential }
    }
}

impl Shared {
    /// May this repository be served at all? `reference` is what the client asks for; a probe upstream uses it.
    pub(super) async fn gate(
        self: &Arc<Self>,
        repository: &Proxied,
        reference: Option<&Reference>,
    ) -> Result<(), Error> {
        if !repository.source().admits(repository.name()) {
            let upstream = &repository.key().upstream;
            return Err(Error::Denied(format!(
                "the operator of this mirror does not serve {upstream}/{} (allow and deny of upstream \"{upstream}\")",
                repository.name()
            )));
        }
        // A moment of the past is nobody's way around a credential that is not settled yet.
        if !self.is_shut(repository) {
            repository.upstream().settle_credential(repository.policy().tags.wait_recent).await;
        }
        let behind_credential = repository.upstream().credential_fingerprint().is_some();
        if !behind_credential || repository.policy().private == Private::Shared {
            return Ok(());
        }
        if self.is_public(repository, reference).await? {
            return Ok(());
        }
        let upstream = &repository.key().upstream;
        Err(Error::Denied(format!(
            "{upstream}/{} is not public, and this mirror does not open private repositories with its own credential \
             (set private = \"shared\" in [upstream.\"{upstream}\"] to allow it)",
            repository.name()
        )))
    }

    /// The verdict whether anybody may read the repository upstream, kept for [`PROOF_FOR`] and beyond it while upstream cannot
    /// be asked.
    async fn is_public(
        self: &Arc<Self>,
        repository: &Proxied,
        reference: Option<&Reference>,
    ) -> Result<bool, Error> {
        let metadata = self.content().metadata();
        let known = metadata.visibility(repository.key()).await.unwrap_or_default();
        if let Some((public, checked)) = known
            && (self.within(checked, PROOF_FOR) || self.is_shut(repository))
        {
            return Ok(public);
        }
        // Not of a moment of the past: who may read a repository is a question of today.
        if self.is_shut(repository) {
            return Err(Error::Offline);
        }
        let bridged = known.map(|(public, _)| public);
        if let (Some(public), Some(_error)) = (bridged, self.failed_lately(repository)) {
            return Ok(public);
        }
        let spending = if bridged.is_some() { Spending::Optional } else { Spending::Needed };
        let looked = self.look(repository, reference, spending);
        let looked = match bridged {
            // An old verdict is worth a short wait; the look goes on, and what it finds is kept.
            Some(_public) => tokio::time::timeout(repository.policy().tags.wait_recent, looked)
                .await
                .unwrap_or(Err(upstream::Error::Unreachable(upstream::Cause::Timeout))),
            None => looked.await,
        };
        match looked {
            Ok(Some(public)) => Ok(public),
            // Nobody sees what was asked for, which is an answer to this request and no verdict.
            Ok(None) => Err(Error::Absent),
            Err(error) => {
                self.note_failure(repository, &error);
                if let Some(public) = bridged {
                    return Ok(public);
                }
                // The parent's word opens this one request and is not recorded: what a copy shows, it may show by a right of its own.
                let upstream = repository.upstream();
                let word = upstream.public_at_parent(repository.name(), reference).await;
                word.map_err(|_no_word| error.into())
            }
        }
    }

    /// Looks with nobody's eyes, once for all who wait.
    async fn look(
        self: &Arc<Self>,
        repository: &Proxied,
        reference: Option<&Reference>,
        spending: Spending,
    ) -> Result<Option<bool>, upstream::Error> {
        let work = {
            let (shared, repository) = (Arc::clone(self), repository.clone());
            let reference = reference.cloned();
            async move { shared.verdict(&repository, reference.as_ref(), spending).await }
        };
        let key = (repository.key().clone(), repository.upstream().credential_fingerprint());
        match self.once(|shared| &shared.verdicts, key, work).await {
            // Another's reference was absent; that says nothing of ours.
            (Ok(None), true) => self.verdict(repository, reference, spending).await,
            (looked, _joined) => looked,
        }
    }

    async fn verdict(
        &self,
        repository: &Proxied,
        reference: Option<&Reference>,
        spending: Spending,
    ) -> Result<Option<bool>, upstream::Error> {
        let upstream = repository.upstream();
        let public = match upstream.public(repository.name(), reference, spending).await {
            // A wrong tag must not close a public repository, nor open one that hides behind 404: its list decides.
            Err(upstream::Error::Absent) => {
                if !upstream.public(repository.name(), None, spending).await? {
                    return Ok(None);
                }
                true
            }
            verdict => verdict?,
        };
        self.unrenewed.invalidate(repository.key());
        let metadata = self.content().metadata();
        let noted = metadata.set_visibility(repository.key(), public, self.now());
        if let Err(error) = noted.await {
            tracing::warn!(?error, "a verdict on a repository could not be recorded");
        }
        Ok(Some(public))
    }

    /// Why a verdict or a proof of the repository could not be renewed, if that was so lately that nobody should wait for it again.
    pub(super) fn failed_lately(&self, repository: &Proxied) -> Option<upstream::Error> {
        if repository.upstream().is_unsettled() {
            // The gate has waited for it.
            let text = "its credential helper has not answered yet";
            return Some(upstream::Error::Credential(text.into()));
        }
        let (when, error) = self.unrenewed.get(repository.key())?;
        self.within(when, repository.policy().tags.retry_after_failure).then_some(error)
    }

    pub(super) fn note_failure(&self, repository: &Proxied, error: &upstream::Error) {
        let failure = (self.now(), error.clone());
        self.unrenewed.insert(repository.key().clone(), failure);
    }

    /// The proof to record for what upstream shows now.
    pub(super) fn proof_now(&self, repository: &Proxied) -> Proof {
        let shared = repository.source().shares_private();
        let credential = if shared { repository.upstream().credential_fingerprint() } else { None };
        Proof { proved: self.now(), credential }
    }

    /// Upstream shows this content under this repository now. A proof that cannot be recorded is asked for again next time.
    pub(super) async fn record_proof(
        &self,
        repository: &Proxied,
        digest: &Digest,
        size: Option<u64>,
    ) {
        let proof = self.proof_now(repository);
        let proved = self.content().metadata().prove(repository.key(), digest, size, proof).await;
        if let Err(error) = proved {
            tracing::warn!(?error, "a proof of membership could not be recorded");
        }
    }

    /// Does an old proof still hold? What was proved anonymously stays proved; a proof by credential ages and dies with it.
    pub(super) fn holds(&self, repository: &Proxied, proof: &Proof) -> bool {
        match (proof.credential, repository.upstream().credential_fingerprint()) {
            (None, _) => true,
            (Some(_), None) => false,
            // The gate has found the repository to be public.
            (Some(_), Some(_)) if !repository.source().shares_private() => true,
            (Some(then), Some(now)) => then == now && self.within(proof.proved, PROOF_FOR),
        }
    }

    /// May an old proof that no longer holds bridge this failure?
    pub(super) fn bridges(
        &self,
        repository: &Proxied,
        proof: &Proof,
        error: &upstream::Error,
    ) -> bool {
        match error {
            upstream::Error::Absent | upstream::Error::Denied => false,
            upstream::Error::Credential(_) => {
                self.now().since(proof.proved) <= repository.policy().credential_grace + PROOF_FOR
            }
            upstream::Error::Limited { .. }
            | upstream::Error::Unreachable(_)
            | upstream::Error::Junk(_)
            | upstream::Error::TooLarge
            | upstream::Error::HeadUnusable => true,
        }
    }

    /// Makes sure that `repository` may serve the blob `digest`; asks upstream if no proof holds. `Some`: upstream was asked, and told
    /// this size.
    pub(super) async fn prove_blob(
        &self,
        repository: &Proxied,
        digest: &Digest,
        proof: Option<Proof>,
    ) -> Result<Option<Option<u64>>, Error> {
        if proof.as_ref().is_some_and(|proof| self.holds(repository, proof)) {
            return Ok(None);
        }
        // Of a moment of the past an old proof is renewed as ever: who may have the content is a question of today.
        if self.is_shut(repository) || self.is_offline(repository) && proof.is_none() {
            return if proof.is_some() { Ok(None) } else { Err(Error::Offline) };
        }
        let bridges = |error: &upstream::Error| {
            proof.as_ref().is_some_and(|proof| self.bridges(repository, proof, error))
        };
        if self.failed_lately(repository).as_ref().is_some_and(bridges) {
            return Ok(None);
        }
        let limited = upstream::Error::Limited { retry_after: None };
        let spending = if bridges(&limited) { Spending::Optional } else { Spending::Needed };
        match repository.upstream().blob_head(repository.name(), digest, spending).await {
            Ok(size) => {
                self.unrenewed.invalidate(repository.key());
                self.record_proof(repository, digest, size).await;
                Ok(Some(size))
            }
            Err(error) if bridges(&error) => {
                self.note_failure(repository, &error);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
