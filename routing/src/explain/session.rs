// SPDX-License-Identifier: Apache-2.0

//! Steps below HTTP: enrolment, the way, and the policies at the end of it.

use std::net::SocketAddr;
use std::sync::Arc;

use policy::peer::Peer;

use super::{Outcome, Topic, Trace, Verdict, peer};
use crate::balance::{Candidates, Want, address};
use crate::discovery::{Found, NetworkAddress, TunnelProtocol, Workload};
use crate::l4::{self, Dial, Hop, Refusal, Tunnel, Way};

impl Trace<'_> {
    pub(super) fn of_workload(&mut self, source: &Arc<Workload>, to: SocketAddr) -> Outcome {
        if source.tunnel == TunnelProtocol::None {
            let text = format!("{} is not in the mesh: its connections are plain", source.uid);
            self.say(Topic::Enrolment, text);
            return self.plain(source, to);
        }
        let text = format!("{} is in the mesh as {}", source.uid, source.identity);
        self.say(Topic::Enrolment, text);
        self.what_is_at(source, to);
        self.onwards(source, &peer(source), to)
    }

    /// Says what an address stands for.
    fn what_is_at(&mut self, source: &Workload, to: SocketAddr) {
        let discovery = &self.snapshot.discovery;
        let address = NetworkAddress::new(Arc::clone(&source.network), to.ip());
        let text = match discovery.service_at(&address, &source.namespace) {
            Some(service) => format!("{to} is service {} port {}", service.key, to.port()),
            None => match discovery.workload_at(&address) {
                Some(workload) => format!("{to} is workload {}", workload.uid),
                None => format!("{to} is not known in the mesh"),
            },
        };
        self.say(Topic::Destination, text);
    }

    /// From the tunnel or gateway of `source`, which `peer` is to the next proxy.
    pub(super) fn onwards(&mut self, source: &Workload, peer: &Peer, to: SocketAddr) -> Outcome {
        let roll = self.rolls.roll();
        self.follow(l4::resolve(source, to, &self.snapshot.discovery, roll), peer)
    }

    /// Along the first hop of a way.
    pub(super) fn follow(&mut self, way: Result<Way, Refusal>, peer: &Peer) -> Outcome {
        let way = match way {
            Ok(way) => way,
            Err(refusal) => {
                self.say(Topic::Way, format!("refused: {refusal}"));
                return Err(Verdict::Refused(None));
            }
        };
        let others = match way.hops.len() {
            0 | 1 => String::new(),
            more => format!(", {} more to try if that fails", more - 1),
        };
        match way.hops.first() {
            Some(hop) => self.hop(hop, peer, &others),
            None => Err(Verdict::Refused(None)),
        }
    }

    /// Along one hop, and on from its end.
    pub(super) fn hop(&mut self, hop: &Hop, peer: &Peer, others: &str) -> Outcome {
        match hop {
            Hop::Passthrough(to) => {
                self.say(Topic::Way, format!("plain to {to}, as it was asked for"));
                Ok(Verdict::Leaves(*to))
            }
            Hop::Direct { to, endpoint } => {
                let text = format!("plain to {} of {}{others}", show(to), endpoint.uid);
                self.say(Topic::Way, text);
                self.arrive(endpoint, &Peer::plain(peer.address), dial_port(to))
            }
            Hop::Tunnel(tunnel) => {
                let text = format!(
                    "HBONE to {} at {}, CONNECT {}{others}",
                    tunnel.endpoint.uid,
                    show(&tunnel.to),
                    tunnel.authority
                );
                self.say(Topic::Way, text);
                self.arrive(&tunnel.endpoint, peer, tunnel.authority.port())
            }
            Hop::Waypoint(tunnel) => {
                let text = format!(
                    "HBONE to waypoint {} at {}, CONNECT {}{others}",
                    tunnel.endpoint.uid,
                    show(&tunnel.to),
                    tunnel.authority
                );
                self.say(Topic::Way, text);
                self.at_waypoint(tunnel, peer)
            }
        }
    }

    fn at_waypoint(&mut self, tunnel: &Tunnel, peer: &Peer) -> Outcome {
        let own = &tunnel.endpoint;
        if self.waypoints.contains(&own.uid) {
            self.say(Topic::Way, "refused: the waypoint was passed before");
            return Err(Verdict::Refused(Some(503)));
        }
        self.waypoints.push(Arc::clone(&own.uid));
        let discovery = &self.snapshot.discovery;
        match l4::inbound::destined(own, peer, &tunnel.authority, discovery) {
            Ok(destined) => match destined.found {
                Found::Service(service) => self.service_request(own, service, destined.at, peer),
                Found::Workload(workload) => {
                    self.workload_request(own, workload, destined.at, peer)
                }
            },
            Err(refusal) => {
                self.say(Topic::Way, format!("refused by the waypoint: {refusal}"));
                Err(Verdict::Refused(Some(refusal.status())))
            }
        }
    }

    /// At the last workload: its own policies, if it is in the mesh.
    fn arrive(&mut self, workload: &Arc<Workload>, peer: &Peer, port: u16) -> Outcome {
        let arrives = Verdict::Arrives { workload: Arc::clone(&workload.uid), port };
        if workload.tunnel == TunnelProtocol::None {
            let text = format!("{} is not in the mesh: nothing is checked there", workload.uid);
            self.say(Topic::SessionPolicy, text);
            return Ok(arrives);
        }
        let ip = address(workload, None, peer.address.ip());
        let ip = ip.unwrap_or_else(|| peer.address.ip());
        let target = SocketAddr::new(ip, port);
        let judged = self.snapshot.authorizations.judge(workload, peer, target, |_| {});
        self.judged(Topic::SessionPolicy, &workload.uid, judged)?;
        Ok(arrives)
    }

    /// A connection that no tunnel took: the node's own load balancing leads it.
    fn plain(&mut self, source: &Arc<Workload>, to: SocketAddr) -> Outcome {
        self.what_is_at(source, to);
        let discovery = &self.snapshot.discovery;
        let address = NetworkAddress::new(Arc::clone(&source.network), to.ip());
        let peer = Peer::plain(peer(source).address);
        if let Some(service) = discovery.service_at(&address, &source.namespace) {
            let endpoints = discovery.endpoints(&service.key);
            let candidates = Candidates::of(source, service, endpoints, Want::Port(to.port()));
            let Some(chosen) = candidates.pick(&mut self.rolls, |_| false) else {
                self.say(Topic::Way, format!("refused: no healthy endpoint of {}", service.key));
                return Err(Verdict::Refused(None));
            };
            let (workload, port) = (Arc::clone(&chosen.workload), chosen.port);
            let text =
                format!("plain to {} port {port}, by the node's load balancing", workload.uid);
            self.say(Topic::Way, text);
            return self.arrive(&workload, &peer, port);
        }
        match discovery.workload_at(&address) {
            Some(workload) => {
                self.say(Topic::Way, format!("plain to {}", workload.uid));
                self.arrive(workload, &peer, to.port())
            }
            None => Ok(Verdict::Leaves(to)),
        }
    }
}

fn show(dial: &Dial) -> String {
    match dial {
        Dial::Address(address) => address.to_string(),
        Dial::Name(name, port) => format!("{name}:{port}"),
    }
}

fn dial_port(dial: &Dial) -> u16 {
    match dial {
        Dial::Address(address) => address.port(),
        Dial::Name(_, port) => *port,
    }
}
