// SPDX-License-Identifier: Apache-2.0

//! Steps at a gateway or waypoint: listener, policies, rule, filters, backend.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use policy::authz::Target;
use policy::peer::Peer;
use policy::request::{Http, Request};

use super::{Outcome, Topic, Trace, Verdict};
use crate::balance::{Candidates, Want};
use crate::discovery::{Found, GatewayAddress, GatewayDestination, Service, Workload};
use crate::filter::{self, Context, Filter, Scheme};
use crate::gateway::{Gateway, GatewayKind};
use crate::l4;
use crate::listener::{GatewayName, Listener};
use crate::matching::{Head, PathMatch};
use crate::ports::{Choice, Ports, Transport};
use crate::route::{BackendRef, BackendTarget, Rule};
use crate::serving::{Ruled, targets};
use crate::split;

/// A client outside the mesh, and where it comes in.
pub(super) struct Outside<'a> {
    pub(super) client: IpAddr,
    pub(super) at: &'a Arc<Workload>,
    pub(super) port: u16,
    pub(super) sni: Option<&'a str>,
}

/// A connection as policies at a gateway see it.
#[derive(Clone, Copy)]
struct Session<'a> {
    peer: &'a Peer,
    to: SocketAddr,
    sni: Option<&'a str>,
}

/// The rule that takes a connection or request, and the path that it matched.
struct Taken {
    rule: Arc<Rule>,
    path: Option<PathMatch>,
}

/// The gateway that a request is at.
struct Place<'a> {
    own: &'a Arc<Workload>,
    kind: GatewayKind,
    scheme: Scheme,
    port: u16,
}

impl Trace<'_> {
    pub(super) fn of_outside(&mut self, name: &GatewayName, outside: &Outside<'_>) -> Outcome {
        let serving = &self.snapshot.serving;
        let text = format!("{} is outside the mesh", outside.client);
        self.say(Topic::Enrolment, text);
        let Some(gateway) = serving.gateway(name) else {
            self.say(Topic::Listener, format!("refused: gateway {name} is not known"));
            return Err(Verdict::Refused(None));
        };
        let listener = self.listener(gateway, outside)?;
        let found = self.listener_rule(&listener, outside)?;
        let own = outside.at;
        let ip = own.addresses.first().copied().unwrap_or(outside.client);
        let peer = Peer::plain(SocketAddr::new(outside.client, 0));
        let to = SocketAddr::new(ip, listener.target_port);
        let session = Session { peer: &peer, to, sni: outside.sni };
        let at = format!("the gateway {name}");
        self.request_policy(&at, &targets::of_gateway(gateway), session)?;

        let scheme = if outside.sni.is_some() { Scheme::Https } else { Scheme::Http };
        let place = Place { own, kind: GatewayKind::Ingress, scheme, port: listener.port };
        self.by_rule(&place, &found)
    }

    /// The rule of a listener that takes the connection or request.
    fn listener_rule(&mut self, listener: &Listener, outside: &Outside<'_>) -> Outcome<Taken> {
        let rules = self.snapshot.serving.listener_rules(&listener.name);
        let Some(parts) = self.http else {
            let rule = rules.and_then(|rules| match outside.sni {
                Some(sni) => rules.over_tls(Some(sni)),
                None => rules.tcp(),
            });
            return match rule {
                Some(rule) => Ok(self.takes(rule, None)),
                None => Err(self.no_route("no route takes this connection", None)),
            };
        };
        match rules.and_then(|rules| rules.http.find(&Head::of(parts))) {
            Some(found) => Ok(self.takes(found.rule, Some(&found.matched.path))),
            None => {
                let text = format!("no rule of listener {} matches", listener.name);
                Err(self.no_route(&text, Some(404)))
            }
        }
    }

    /// Says which rule it is.
    fn takes(&mut self, rule: &Arc<Rule>, path: Option<&PathMatch>) -> Taken {
        self.decide(Topic::Route, format!("rule {} takes it", rule.name), &rule.name);
        Taken { rule: Arc::clone(rule), path: path.cloned() }
    }

    /// The listener that the connection or request belongs to.
    fn listener(&mut self, gateway: &Gateway, outside: &Outside<'_>) -> Outcome<Arc<Listener>> {
        let of_gateway = self.snapshot.serving.listeners().filter(|listener| {
            listener.name.gateway() == gateway.name && listener.port == outside.port
        });
        let mut ports = Ports::default();
        let mut bound = outside.port;
        for listener in of_gateway {
            ports.put(listener);
            bound = listener.target_port;
        }
        let place = ports.at(bound, Transport::Tcp);
        let status = self.http.map(|_| 404);
        let found = place.map(|place| match (self.http, outside.sni) {
            (Some(parts), None) => place.by_host(Head::of(parts).host),
            (Some(parts), sni) => place.by_host_over_tls(sni, Head::of(parts).host),
            (None, sni) => {
                let listener = if sni.is_some() { place.by_sni(sni) } else { place.only() };
                listener.map_or(Choice::NotFound, Choice::Serve)
            }
        });
        match found {
            Some(Choice::Serve(listener)) => {
                let text = format!("port {} belongs to listener {}", outside.port, listener.name);
                self.decide(Topic::Listener, text, &listener.name);
                Ok(Arc::clone(listener))
            }
            Some(Choice::Misdirected) => {
                self.say(Topic::Listener, "refused: the host is another listener's");
                Err(Verdict::Refused(Some(421)))
            }
            Some(Choice::NotFound) | None => {
                let text = format!("refused: no listener of {} takes it", gateway.name);
                self.say(Topic::Listener, text);
                Err(Verdict::Refused(status))
            }
        }
    }

    fn request_policy(
        &mut self,
        at: &str,
        targets: &[Target],
        session: Session<'_>,
    ) -> Outcome<()> {
        let Session { peer, to, sni } = session;
        let claims = self.token(at, targets)?;
        let http = self.http.map(|parts| {
            let (host, path) = (Head::of(parts).host, parts.uri.path());
            let claims = claims.as_deref();
            Http { method: &parts.method, path, host, headers: &parts.headers, claims }
        });
        let remote = peer.address.ip();
        let request = Request { peer, remote, destination: to, sni, http };
        let judged = self.snapshot.serving.judge(targets, &request, |_| {});
        self.judged(Topic::RequestPolicy, at, judged)
    }

    /// A request to a service, at its waypoint `own`.
    pub(super) fn service_request(
        &mut self,
        own: &Arc<Workload>,
        service: &Arc<Service>,
        to: SocketAddr,
        peer: &Peer,
    ) -> Outcome {
        let port = to.port();
        let found = self.service_rule(service, port, peer)?;
        let targets = vec![targets::of_service(&service.key)];
        let session = Session { peer, to, sni: None };
        self.waypoint_policy(own, service.waypoint.iter(), targets, session)?;
        let place = Place { own, kind: GatewayKind::Waypoint, scheme: Scheme::Http, port };
        match found {
            Some(found) => self.by_rule(&place, &found),
            None => self.leave(&place, service, port),
        }
    }

    /// The rule of a service that takes the connection or request; none sends it straight on.
    fn service_rule(
        &mut self,
        service: &Service,
        port: u16,
        peer: &Peer,
    ) -> Outcome<Option<Taken>> {
        let namespace = peer.identity.as_ref().map(policy::identity::Identity::namespace);
        let rules = self.snapshot.serving.service_rules(&service.key, port, namespace);
        let ruled = self.http.map(|parts| rules.request(&Head::of(parts)));
        let taken = match ruled {
            None => rules.connection(None).map(|rule| self.takes(rule, None)),
            Some(Ruled::By(found)) => Some(self.takes(found.rule, Some(&found.matched.path))),
            Some(Ruled::Straight) => None,
            Some(Ruled::Nowhere) => {
                let text = format!("no rule of service {} matches", service.key);
                return Err(self.no_route(&text, Some(404)));
            }
        };
        if taken.is_none() {
            let text = format!("no route is attached to {}: straight to it", service.key);
            self.say(Topic::Route, text);
        }
        Ok(taken)
    }

    /// A request to a workload's own address, at its waypoint: no routes, but policies.
    pub(super) fn workload_request(
        &mut self,
        own: &Arc<Workload>,
        workload: &Arc<Workload>,
        to: SocketAddr,
        peer: &Peer,
    ) -> Outcome {
        let targets = targets::of_workload(workload, to.port()).collect();
        let session = Session { peer, to, sni: None };
        self.waypoint_policy(own, workload.waypoint.iter(), targets, session)?;
        match l4::hop_to_endpoint(workload, None, to.port(), to.ip()) {
            Some(hop) => self.hop(&hop, &proven(own), ""),
            None => {
                self.say(Topic::Backend, format!("refused: {} has no address", workload.uid));
                Err(Verdict::Refused(Some(503)))
            }
        }
    }

    /// The policies over `targets`, and over the waypoint `own` that is one of `declared`.
    fn waypoint_policy<'b>(
        &mut self,
        own: &Workload,
        declared: impl Iterator<Item = &'b GatewayAddress>,
        mut targets: Vec<Target>,
        session: Session<'_>,
    ) -> Outcome<()> {
        let at = match self.waypoint(declared, own) {
            Some(gateway) => {
                targets.extend(targets::of_gateway(gateway));
                format!("the waypoint {}", gateway.name)
            }
            None => format!("the waypoint {}", own.uid),
        };
        self.request_policy(&at, &targets, session)
    }

    /// The Gateway whose proxy is the waypoint `own`.
    ///
    /// A waypoint's service has the name of its Gateway (Istio's gateway deployment controller).
    fn waypoint<'b>(
        &self,
        declared: impl Iterator<Item = &'b GatewayAddress>,
        own: &Workload,
    ) -> Option<&Arc<Gateway>> {
        let discovery = &self.snapshot.discovery;
        let mut services: Vec<_> = own.services.keys().collect();
        for waypoint in declared {
            if let GatewayDestination::Hostname(key) = &waypoint.destination
                && let Some(Found::Service(service)) = discovery.gateway(waypoint, &own.namespace)
                && own.services.contains_key(&service.key)
            {
                services.insert(0, key);
            }
        }
        services.into_iter().find_map(|key| {
            let name = discovery.service(key).map(|service| Arc::clone(&service.name))?;
            let name = format!("{}/{name}", key.namespace).parse::<GatewayName>();
            name.map_or(None, |name| self.snapshot.serving.gateway(&name))
        })
    }

    fn no_route(&mut self, text: &str, status: Option<u16>) -> Verdict {
        self.say(Topic::Route, format!("refused: {text}"));
        Verdict::Refused(status)
    }

    fn by_rule(&mut self, place: &Place<'_>, taken: &Taken) -> Outcome {
        let (rule, path) = (&taken.rule, taken.path.as_ref());
        self.filters(place, rule, &rule.filters, path)?;
        let roll = self.rolls.roll();
        let chosen = match split::choose(&rule.backends, roll) {
            Ok(chosen) => chosen,
            Err(none) => {
                self.decide(Topic::Backend, format!("refused: {none}"), &rule.name);
                return Err(Verdict::Refused(self.http.map(|_| 500)));
            }
        };
        self.share(rule, chosen);
        self.filters(place, rule, &chosen.filters, path)?;
        let BackendTarget::Service { key, port } = &chosen.target else {
            return Err(Verdict::Refused(self.http.map(|_| 500)));
        };
        match self.snapshot.discovery.service(key) {
            Some(service) => self.leave(place, service, *port),
            None => {
                self.say(Topic::Backend, format!("refused: service {key} is not known"));
                Err(Verdict::Refused(self.http.map(|_| 500)))
            }
        }
    }

    /// Says which backend was chosen, and with what chance.
    fn share(&mut self, rule: &Rule, chosen: &BackendRef) {
        let total: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let target = match &chosen.target {
            BackendTarget::Service { key, port } => format!("service {key} port {port}"),
            BackendTarget::Invalid { reason } => format!("nowhere: {reason}"),
        };
        let text = format!("{target}, weight {} of {total}", chosen.weight);
        self.decide(Topic::Backend, text, &rule.name);
    }

    fn filters(
        &mut self,
        place: &Place<'_>,
        rule: &Rule,
        filters: &[Filter],
        path: Option<&PathMatch>,
    ) -> Outcome<()> {
        let (Some(matched), Some(parts), false) = (path, self.http, filters.is_empty()) else {
            return Ok(());
        };
        let (scheme, listener_port) = (place.scheme, place.port);
        let context = Context { head: Head::of(parts), scheme, listener_port, matched };
        let rolls = &mut self.rolls;
        match filter::on_request(filters, &context, || rolls.roll()) {
            Ok(plan) => {
                let text = format!(
                    "{} filters: {} changes to the request, {} to the response, {} copies",
                    filters.len(),
                    plan.request.headers.len()
                        + usize::from(plan.request.authority.is_some())
                        + usize::from(plan.request.path_and_query.is_some()),
                    plan.response.len(),
                    plan.mirrors.len()
                );
                self.decide(Topic::Filters, text, &rule.name);
                Ok(())
            }
            Err(reply) => {
                let status = reply.status.as_u16();
                let text = format!("answered with {status}: {:?}", reply.reason);
                self.decide(Topic::Filters, text, &rule.name);
                let refused = reply.status.is_server_error();
                Err(if refused {
                    Verdict::Refused(Some(status))
                } else {
                    Verdict::Answered(status)
                })
            }
        }
    }

    /// From a gateway on to a service: through its waypoint, or to an endpoint.
    fn leave(&mut self, place: &Place<'_>, service: &Arc<Service>, port: u16) -> Outcome {
        let discovery = &self.snapshot.discovery;
        let peer = proven(place.own);
        if l4::enters_waypoint(place.own, place.kind, service, discovery) {
            let roll = self.rolls.roll();
            let way = l4::through_waypoint(place.own, service, port, discovery, roll);
            return self.follow(way, &peer);
        }
        let vip = service.addresses.first().map(|vip| vip.range.addr());
        let endpoints = discovery.endpoints(&service.key);
        let candidates = Candidates::of(place.own, service, endpoints, Want::Port(port));
        let chosen = candidates.pick_for(service, self.client, &mut self.rolls, |_| false);
        let ip = vip.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let hop = chosen.and_then(|chosen| {
            l4::hop_to_endpoint(&chosen.workload, Some(service), chosen.port, ip)
        });
        match hop {
            Some(hop) => self.hop(&hop, &peer, ""),
            None => {
                let text = format!("refused: service {} has no healthy endpoint", service.key);
                self.say(Topic::Backend, text);
                Err(Verdict::Refused(self.http.map(|_| 503)))
            }
        }
    }
}

/// A gateway proves itself to whatever it calls inside the mesh.
fn proven(own: &Workload) -> Peer {
    let ip = own.addresses.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    Peer::proven(own.identity.clone(), SocketAddr::new(ip, 0))
}
