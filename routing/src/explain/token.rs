// SPDX-License-Identifier: Apache-2.0

//! Step at a gateway or waypoint: the token of an end user.
//!
//! Everything is asked as for live traffic but the signature: no key is read here.

use std::borrow::Cow;

use policy::authz::Target;
use policy::jwt::{Claims, InvalidToken, JwtRule, RequestAuthentication, judge};

use super::{Outcome, Topic, Trace, Verdict};

impl<'a> Trace<'a> {
    /// What the token of the request proves, where `targets` are in force; none: it has none.
    pub(super) fn token(
        &mut self,
        at: &str,
        targets: &[Target],
    ) -> Outcome<Option<Cow<'a, Claims>>> {
        let Some(parts) = self.http else { return Ok(None) };
        let snapshot = self.snapshot;
        let found: Vec<_> = snapshot.serving.authentications.of(targets).collect();
        let mut rules: Vec<(&RequestAuthentication, &JwtRule)> = Vec::new();
        for one in found {
            if let Some(why) = &one.unreadable {
                let by = format!("policy {}", one.name);
                self.decide(Topic::Token, format!("refused at {at}: it cannot be read: {why}"), by);
                return Err(Verdict::Refused(Some(403)));
            }
            rules.extend(one.rules.iter().map(|rule| (&**one, rule)));
        }
        if rules.is_empty() {
            if self.claims.is_some() {
                self.say(Topic::Token, format!("nothing at {at} reads tokens: it proves nothing"));
            }
            return Ok(None);
        }
        rules.sort_by(|one, other| one.1.issuer.cmp(&other.1.issuer));
        match self.claims {
            Some(claims) => self.told(at, &rules, claims),
            None => self.read(at, &rules, parts),
        }
    }

    /// Claims that the question takes for proven.
    fn told(
        &mut self,
        at: &str,
        rules: &[(&RequestAuthentication, &JwtRule)],
        claims: &'a Claims,
    ) -> Outcome<Option<Cow<'a, Claims>>> {
        let issuer = claims.issuer();
        let rule = rules.iter().find(|(_, rule)| *rule.issuer == *issuer);
        let (by, why) = match (rule, rules.first()) {
            (Some((one, rule)), _) if rule.keys.is_empty() => (one, InvalidToken::NoKeys),
            (Some((one, _)), _) => {
                let text = format!("token of issuer {issuer} is taken at {at}");
                self.decide(Topic::Token, text, format!("policy {}", one.name));
                return Ok(Some(Cow::Borrowed(claims)));
            }
            (None, Some((one, _))) => (one, InvalidToken::UnknownIssuer),
            (None, None) => return Ok(None),
        };
        Err(self.refuses(at, by, why))
    }

    /// The token that the head has.
    fn read(
        &mut self,
        at: &str,
        rules: &[(&RequestAuthentication, &JwtRule)],
        parts: &http::request::Parts,
    ) -> Outcome<Option<Cow<'a, Claims>>> {
        let only: Vec<&JwtRule> = rules.iter().map(|(_, rule)| *rule).collect();
        let with_keys = |index: usize| only.get(index).is_some_and(|rule| !rule.keys.is_empty());
        let signed =
            |index: usize| if with_keys(index) { Ok(()) } else { Err(InvalidToken::NoKeys) };
        let judged = judge(&only, parts, self.now, |index, _| signed(index));
        let by = |index: usize| rules.get(index).map(|(one, _)| *one);
        match judged {
            Ok(None) => {
                self.say(Topic::Token, format!("no token that {at} reads: nobody is proven"));
                Ok(None)
            }
            Ok(Some(proven)) => {
                let issuer = proven.claims.issuer();
                let text = format!(
                    "token of issuer {issuer} is taken at {at} (its signature is not checked here)"
                );
                if let Some(one) = by(proven.rule) {
                    self.decide(Topic::Token, text, format!("policy {}", one.name));
                }
                Ok(Some(Cow::Owned(proven.claims)))
            }
            Err(refused) => match by(refused.rule) {
                Some(one) => Err(self.refuses(at, one, refused.why)),
                None => Ok(None),
            },
        }
    }

    fn refuses(&mut self, at: &str, by: &RequestAuthentication, why: InvalidToken) -> Verdict {
        let text = format!("refused at {at}: {why}");
        self.decide(Topic::Token, text, format!("policy {}", by.name));
        Verdict::Refused(Some(if why == InvalidToken::Audience { 403 } else { 401 }))
    }
}
