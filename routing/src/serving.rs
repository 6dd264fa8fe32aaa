// SPDX-License-Identifier: Apache-2.0

//! What a gateway serves: listeners, rules, certificates and policies, by name.
//!
//! Owns the indices; a change copies only what it touches. Leaves the choice of
//! a rule to [`crate::table`], and the meaning of policies to [`policy::authz`].
//!
//! Keeps: a policy that was sent but could never be read refuses what it
//! governs, and all requests if that much cannot be read.
//!
//! Start at [`Serving`].

pub mod targets;

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::authz::{Action, Authorization, PolicyName, Scope, Target};

use crate::authentications::Authentications;
use crate::backend::{BackendTls, BackendTlsName, Secret};
use crate::discovery::{ServiceKey, Shards};
use crate::gateway::Gateway;
use crate::listener::{GatewayName, Listener, ListenerName, SecretName};
use crate::matching::Head;
use crate::ports::Ports;
use crate::route::{Parent, ParentRef, Rule, RuleName};
use crate::table::{Found, ParentTable};

type Policies = Arc<BTreeMap<PolicyName, Arc<Authorization>>>;

/// All that a gateway serves; cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    gateways: Arc<BTreeMap<GatewayName, Arc<Gateway>>>,
    listeners: Arc<BTreeMap<ListenerName, Arc<Listener>>>,
    ports: Ports,
    rules: Shards<RuleName, Arc<Rule>>,
    tables: Shards<Parent, Arc<ParentTable>>,
    /// Attachments of rules that are for callers of one namespace.
    consumers: usize,
    backend_tls: Shards<BackendTlsName, Arc<BackendTls>>,
    secrets: Shards<SecretName, Arc<Secret>>,
    policies: Shards<PolicyName, Arc<Authorization>>,
    by_target: Shards<Target, Policies>,
    /// Which tokens of end users are taken.
    pub authentications: Authentications,
    /// Policies of which not even the targets could be read: they govern everything.
    everywhere: Policies,
}

/// The rules for requests to one port of a service, from one namespace.
#[derive(Clone, Debug, Default)]
pub struct ServiceRules<'a> {
    /// Those for the very port, and those for every port.
    tables: [Option<&'a Arc<ParentTable>>; 2],
}

/// What the rules of a service say about a request.
#[derive(Clone, Copy, Debug)]
pub enum Ruled<'a> {
    /// No rule is about requests: it goes straight to the service.
    Straight,
    /// This rule takes it.
    By(Found<'a>),
    /// There are rules, and none takes it.
    Nowhere,
}

impl<'a> ServiceRules<'a> {
    /// Tells whether no rule is attached: requests go straight to the service.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(Option::is_none)
    }

    /// The tables, the port's own first.
    pub fn tables(&self) -> impl Iterator<Item = &'a Arc<ParentTable>> {
        self.tables.into_iter().flatten()
    }

    /// Tells whether a rule looks at requests, so that bytes must not pass unread.
    pub fn ask_http(&self) -> bool {
        self.tables().any(|table| !table.http.is_empty())
    }

    /// What becomes of the request `head`.
    pub fn request(&self, head: &Head<'_>) -> Ruled<'a> {
        if !self.ask_http() {
            return Ruled::Straight;
        }
        self.find(head).map_or(Ruled::Nowhere, Ruled::By)
    }

    /// The rule for a connection that is no request, by the name in its TLS hello if there was
    /// one; none: it goes straight to the service.
    pub fn connection(&self, sni: Option<&str>) -> Option<&'a Arc<Rule>> {
        let by_name = sni.and_then(|sni| self.tables().find_map(|table| table.tls(Some(sni))));
        by_name.or_else(|| self.tables().find_map(|table| table.tcp()))
    }

    /// The rule that answers `head`, or none: the best of both tables.
    fn find(&self, head: &Head<'_>) -> Option<Found<'a>> {
        let found = self.tables().filter_map(|table| table.http.find(head));
        found.reduce(|one, two| {
            let ranks = two.matched.rank().cmp(&one.matched.rank());
            let better = ranks.then_with(|| one.rule.seniority(two.rule));
            if better.is_gt() { two } else { one }
        })
    }
}

impl Serving {
    /// The gateway with this name.
    pub fn gateway(&self, name: &GatewayName) -> Option<&Arc<Gateway>> {
        self.gateways.get(name)
    }

    /// All gateways, in the order of name.
    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        self.gateways.values()
    }

    /// The listener with this name.
    pub fn listener(&self, name: &ListenerName) -> Option<&Arc<Listener>> {
        self.listeners.get(name)
    }

    /// All listeners, in the order of name.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values()
    }

    /// The listeners by the port that they share.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The rule with this name.
    pub fn rule(&self, name: &RuleName) -> Option<&Arc<Rule>> {
        self.rules.get(name)
    }

    /// All rules, in no order.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.values()
    }

    /// Number of rules.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The rules attached to `parent`; none: there is none.
    pub fn table(&self, parent: &Parent) -> Option<&Arc<ParentTable>> {
        self.tables.get(parent)
    }

    /// The rules of a listener; none: there is none.
    pub fn listener_rules(&self, name: &ListenerName) -> Option<&Arc<ParentTable>> {
        self.table(&Parent::Listener(name.clone()))
    }

    /// The rules for requests to `port` of a service from a caller of `namespace`.
    ///
    /// Rules of the caller's own namespace, if there are any, take the place of
    /// those of the service's owner.
    ///
    /// # Rule
    ///
    /// GEP-1426, routes of producers and consumers.
    pub fn service_rules(
        &self,
        service: &ServiceKey,
        port: u16,
        namespace: Option<&str>,
    ) -> ServiceRules<'_> {
        let tables = |consumer: Option<Arc<str>>| {
            let table = |port| {
                let consumer = consumer.clone();
                self.table(&Parent::Service { key: service.clone(), port, consumer })
            };
            ServiceRules { tables: [table(Some(port)), table(None)] }
        };
        // Hardly any mesh has such rules, and without one no name is copied.
        let namespace = namespace.filter(|_| self.consumers > 0);
        let own = namespace.map(|namespace| tables(Some(namespace.into())));
        own.filter(|own| !own.is_empty()).unwrap_or_else(|| tables(None))
    }

    /// How to speak TLS to a port of a service; none: not at all.
    pub fn backend_tls(&self, service: &ServiceKey, port: u16) -> Option<&Arc<BackendTls>> {
        let name = |port| BackendTlsName { service: service.clone(), port };
        let exact = self.backend_tls.get(&name(Some(port)));
        exact.or_else(|| self.backend_tls.get(&name(None)))
    }

    /// The certificate with this name.
    pub fn secret(&self, name: &SecretName) -> Option<&Arc<Secret>> {
        self.secrets.get(name)
    }

    /// The policy with this name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Authorization>> {
        self.policies.get(name)
    }

    /// The policies in force for `target`, in the order of name.
    ///
    /// Policies of which not even the targets could be read come with every target.
    pub fn policies(&self, target: &Target) -> impl Iterator<Item = &Arc<Authorization>> {
        let own = self.by_target.get(target).into_iter().flat_map(|policies| policies.values());
        self.everywhere.values().chain(own)
    }

    /// Takes a gateway in.
    pub fn put_gateway(&mut self, gateway: Arc<Gateway>) {
        Arc::make_mut(&mut self.gateways).insert(gateway.name.clone(), gateway);
    }

    /// Takes a gateway out.
    pub fn remove_gateway(&mut self, name: &GatewayName) {
        Arc::make_mut(&mut self.gateways).remove(name);
    }

    /// Takes a listener in.
    pub fn put_listener(&mut self, listener: Arc<Listener>) {
        self.remove_listener(&listener.name);
        self.ports.put(&listener);
        Arc::make_mut(&mut self.listeners).insert(listener.name.clone(), listener);
    }

    /// Takes a listener out.
    pub fn remove_listener(&mut self, name: &ListenerName) {
        if let Some(old) = Arc::make_mut(&mut self.listeners).remove(name) {
            self.ports.remove(&old);
        }
    }

    /// Takes a rule in, in place of the one with its name.
    pub fn put_rule(&mut self, rule: Arc<Rule>) {
        let old = self.rules.insert(rule.name.clone(), Arc::clone(&rule));
        if old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &rule)) {
            return;
        }
        // The new one first: a place that both share is not unmade in between.
        for at in &rule.parents {
            let mut table = self.tables.remove(&at.parent).unwrap_or_default();
            Arc::make_mut(&mut table).insert(&rule, &at.hostnames);
            self.tables.insert(at.parent.clone(), table);
        }
        self.consumers += consumers(&rule);
        if let Some(old) = old {
            self.detach(&old);
        }
    }

    /// Takes a rule out.
    pub fn remove_rule(&mut self, name: &RuleName) {
        if let Some(old) = self.rules.remove(name) {
            self.detach(&old);
        }
    }

    fn detach(&mut self, old: &Rule) {
        self.consumers -= consumers(old);
        for at in &old.parents {
            let Some(mut table) = self.tables.remove(&at.parent) else { continue };
            Arc::make_mut(&mut table).remove(old, &at.hostnames);
            if !table.is_empty() {
                self.tables.insert(at.parent.clone(), table);
            }
        }
    }

    /// Takes TLS of a backend in.
    pub fn put_backend_tls(&mut self, tls: Arc<BackendTls>) {
        self.backend_tls.insert(tls.name.clone(), tls);
    }

    /// Takes TLS of a backend out.
    pub fn remove_backend_tls(&mut self, name: &BackendTlsName) {
        self.backend_tls.remove(name);
    }

    /// Takes a certificate in.
    pub fn put_secret(&mut self, secret: Arc<Secret>) {
        self.secrets.insert(secret.name.clone(), secret);
    }

    /// Takes a certificate out.
    pub fn remove_secret(&mut self, name: &SecretName) {
        self.secrets.remove(name);
    }

    /// Notes that TLS towards a service was sent and could not be read.
    ///
    /// The last good version stays; if there never was one, requests to the
    /// service fail: they must not go out as if no TLS were asked for.
    pub fn unreadable_backend_tls(&mut self, name: &BackendTlsName, reason: &str) {
        if self.backend_tls.get(name).is_none() {
            self.put_backend_tls(Arc::new(BackendTls::refusing(name.clone(), reason)));
        }
    }

    /// Takes a policy in, in place of the one with its name.
    pub fn put_policy(&mut self, policy: Arc<Authorization>) {
        self.remove_policy(&policy.name);
        for target in targets(&policy) {
            let mut policies = self.by_target.remove(target).unwrap_or_default();
            Arc::make_mut(&mut policies).insert(policy.name.clone(), Arc::clone(&policy));
            self.by_target.insert(target.clone(), policies);
        }
        if targets(&policy).is_empty() {
            let everywhere = Arc::make_mut(&mut self.everywhere);
            everywhere.insert(policy.name.clone(), Arc::clone(&policy));
        }
        self.policies.insert(policy.name.clone(), policy);
    }

    /// Takes a policy out.
    pub fn remove_policy(&mut self, name: &PolicyName) {
        let Some(old) = self.policies.remove(name) else { return };
        for target in targets(&old) {
            let Some(mut policies) = self.by_target.remove(target) else { continue };
            Arc::make_mut(&mut policies).remove(name);
            if !policies.is_empty() {
                self.by_target.insert(target.clone(), policies);
            }
        }
        if targets(&old).is_empty() {
            Arc::make_mut(&mut self.everywhere).remove(name);
        }
    }

    /// Notes that the policy was sent and could not be read.
    ///
    /// The last good version stays in force. If there never was one, a policy
    /// that refuses takes its place over `targets`, or over everything if
    /// those could not be read either.
    pub fn unreadable_policy(&mut self, name: &PolicyName, targets: Vec<Target>, reason: &str) {
        if self.policy(name).is_none() {
            self.put_policy(Arc::new(Authorization {
                name: name.clone(),
                scope: Scope::Targets(targets),
                action: Action::Deny,
                dry_run: false,
                unsupported: Some(reason.into()),
                rules: Vec::new(),
            }));
        }
    }
}

/// How often a rule is attached for callers of one namespace only.
fn consumers(rule: &Rule) -> usize {
    let consumer = |at: &&ParentRef| matches!(at.parent, Parent::Service { consumer: Some(_), .. });
    rule.parents.iter().filter(consumer).count()
}

fn targets(policy: &Authorization) -> &[Target] {
    match &policy.scope {
        Scope::Targets(targets) => targets,
        Scope::Global | Scope::Namespace | Scope::Selector => &[],
    }
}

#[cfg(test)]
mod tests;
