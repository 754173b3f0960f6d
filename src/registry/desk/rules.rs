//! Pins and freezes: what the operator wants kept, and what is to stand still.

use std::time::Duration;

use super::error::{Error, Reason};
use super::image;
use super::model::RuleInfo;
use super::service::Desk;
use crate::clock::Timestamp;
use crate::metadata::{RULE_REASON_BYTES_MAX, RULES_MAX, Rule, RuleKind};

/// How long a rule is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// Until it is taken back.
    #[default]
    Revoked,
    Moment(Timestamp),
    /// For so long from now on.
    For(Duration),
}

/// Which rules are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    Id(i64),
    /// All with this scope.
    Scope(String),
}

impl Desk {
    pub fn pins(&self) -> Vec<RuleInfo> {
        self.rules_of(RuleKind::Pin).into_iter().map(info).collect()
    }

    pub fn freezes(&self) -> Vec<RuleInfo> {
        self.rules_of(RuleKind::Freeze).into_iter().map(info).collect()
    }

    /// Keeps what a scope covers.
    pub async fn pin(&self, scope: &str, until: Until, reason: &str) -> Result<RuleInfo, Error> {
        self.add(RuleKind::Pin, scope, until, reason).await
    }

    /// Holds the tags that a scope covers where they are.
    pub async fn freeze(&self, scope: &str, until: Until, reason: &str) -> Result<RuleInfo, Error> {
        self.add(RuleKind::Freeze, scope, until, reason).await
    }

    /// Takes pins back, and tells how many; none is an error.
    pub async fn unpin(&self, which: &Which) -> Result<u64, Error> {
        self.remove(RuleKind::Pin, which).await
    }

    /// Takes freezes back, and tells how many; none is an error.
    pub async fn unfreeze(&self, which: &Which) -> Result<u64, Error> {
        self.remove(RuleKind::Freeze, which).await
    }

    async fn add(
        &self,
        kind: RuleKind,
        scope: &str,
        until: Until,
        reason: &str,
    ) -> Result<RuleInfo, Error> {
        let scope = image::scope(scope, &self.upstreams())?;
        if kind == RuleKind::Freeze && scope.digest().is_some() {
            let message = format!("{scope} names a revision, which never moves; freeze its tag");
            return Err(Error::new(Reason::Scope, message));
        }
        let until = end(until, self.now())?;
        if reason.len() > RULE_REASON_BYTES_MAX || reason.contains(char::is_control) {
            let message = format!("a reason is one line of at most {RULE_REASON_BYTES_MAX} bytes");
            return Err(Error::new(Reason::Value, message));
        }
        if self.rules().all().len() >= RULES_MAX {
            let message =
                format!("there are {RULES_MAX} pins and freezes already; take some back first");
            return Err(Error::new(Reason::TooManyRules, message));
        }
        let rule = self.metadata().add_rule(kind, scope, until, reason.to_owned()).await?;
        tracing::info!(kind = word(kind), scope = %rule.scope, id = rule.id, "a rule is in force");
        Ok(info(rule))
    }

    async fn remove(&self, kind: RuleKind, which: &Which) -> Result<u64, Error> {
        let ids: Vec<i64> = match which {
            Which::Id(id) => {
                self.rules_of(kind).iter().map(|rule| rule.id).filter(|known| known == id).collect()
            }
            Which::Scope(text) => {
                // A scope whose registry is gone from the configuration can only be meant as it was written.
                let full = image::scope(text, &self.upstreams());
                let full = full.as_ref().map_or(text.as_str(), crate::oci::Scope::as_str);
                let rules = self.rules_of(kind);
                let same = rules.iter().filter(|rule| rule.scope.as_str() == full);
                same.map(|rule| rule.id).collect()
            }
        };
        let mut removed = 0;
        for id in ids {
            removed += u64::from(self.metadata().remove_rule(id).await?);
        }
        if removed == 0 {
            let what = match which {
                Which::Id(id) => format!("the id {id}"),
                Which::Scope(text) => format!("the scope {text:?}"),
            };
            let message = format!("there is no {} with {what}", word(kind));
            return Err(Error::new(Reason::UnknownRule, message));
        }
        tracing::info!(kind = word(kind), removed, "rules were taken back");
        Ok(removed)
    }
}

fn word(kind: RuleKind) -> &'static str {
    match kind {
        RuleKind::Pin => "pin",
        RuleKind::Freeze => "freeze",
    }
}

fn info(rule: Rule) -> RuleInfo {
    let Rule { id, kind: _, scope, since, until, reason } = rule;
    RuleInfo { id, scope: scope.to_string(), since, until, reason }
}

/// The end of a rule that begins now.
fn end(until: Until, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    let over = |what: &str| {
        let message = format!("the end of the rule, {what}, is not after now, {now}");
        Err(Error::new(Reason::Value, message))
    };
    match until {
        Until::Revoked => Ok(None),
        Until::Moment(moment) if moment > now => Ok(Some(moment)),
        Until::Moment(moment) => over(&moment.to_string()),
        Until::For(Duration::ZERO) => over("0"),
        Until::For(duration) => Ok(Some(now.plus(duration))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_ends_after_it_began() {
        let now = Timestamp::from_millis(10_000);
        let minute = Duration::from_secs(60);
        assert_eq!(end(Until::Revoked, now), Ok(None));
        assert_eq!(end(Until::For(minute), now), Ok(Some(now.plus(minute))));
        assert_eq!(end(Until::Moment(now.plus(minute)), now), Ok(Some(now.plus(minute))));
        for until in [
            Until::For(Duration::ZERO),
            Until::Moment(now),
            Until::Moment(Timestamp::from_millis(1)),
        ] {
            assert_eq!(end(until, now).unwrap_err().reason, Reason::Value, "{until:?}");
        }
    }
}
