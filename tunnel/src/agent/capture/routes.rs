// SPDX-License-Identifier: Apache-2.0

//! The policy rule of a pod, and the route that it leads to.
//!
//! Replies on captured connections bear a mark; by it they stay inside the pod, with the tunnel,
//! whatever address they go to. Owns: that rule and that table. The kernel is asked directly:
//! pods start by the hundred, and a program for each question costs more than the answer.
//!
//! Rule: mark, table and preference are those of Istio's agent.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};
use rustix::io::Errno;

use super::rules::{CONNECTION_MARK, MARK_MASK};
use super::{CaptureError, Families};
use crate::sys::NetworkNamespace;

/// Preference of the policy rule, and its table.
const RULE_PREFERENCE: u32 = 32764;
const ROUTE_TABLE: u8 = 100;
/// The loopback is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// What the kernel says of what is not there: the thing itself, its table, or its family.
const GONE: [Errno; 3] = [Errno::NOENT, Errno::SRCH, Errno::AFNOSUPPORT];

/// Rules and routes of one namespace.
pub(super) struct Routes {
    handle: Handle,
    families: Families,
}

impl Routes {
    /// Those of `namespace`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, or the kernel not be asked.
    pub(super) fn of(namespace: &NetworkNamespace) -> Result<Self, CaptureError> {
        let families = Families::of(namespace)?;
        let connected = namespace.enter(rtnetlink::new_connection).map_err(CaptureError::Enter)?;
        let (connection, handle, _) = connected.map_err(CaptureError::Ask)?;
        // It ends with the last handle.
        tokio::spawn(connection);
        Ok(Self { handle, families })
    }

    fn versions(&self) -> impl Iterator<Item = IpVersion> + use<> {
        std::iter::once(IpVersion::V4).chain(self.families.v6.then_some(IpVersion::V6))
    }

    /// Puts rule and route in force; twice is once.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; some of it may be in force then.
    pub(super) async fn add(&self) -> Result<(), CaptureError> {
        for version in self.versions() {
            let route = self.handle.route().add(route(&version)).replace();
            route.execute().await.map_err(refused("to add a route"))?;
            let mut request = self.handle.rule().add();
            *request.message_mut() = rule(&version);
            match request.execute().await {
                Err(error) if !is_one_of(&error, &[Errno::EXIST]) => {
                    return Err(refused("to add a policy rule")(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes the rule and every route of the table away; what is not there is no error.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; some of it may be gone then.
    pub(super) async fn remove(&self) -> Result<(), CaptureError> {
        let unless_gone = |done: Result<(), Error>, what| match done {
            Err(error) if !is_one_of(&error, &GONE) => Err(refused(what)(error)),
            Ok(()) | Err(_) => Ok(()),
        };
        for version in self.versions() {
            let done = self.handle.rule().del(rule(&version)).execute().await;
            unless_gone(done, "to take a policy rule away")?;
            for route in self.routes(&version).await? {
                let done = self.handle.route().del(route).execute().await;
                unless_gone(done, "to take a route away")?;
            }
        }
        Ok(())
    }

    /// What is in force, a line each, comparable with an earlier answer for equality.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub(super) async fn in_force(&self) -> Result<Vec<String>, CaptureError> {
        let mut lines = Vec::new();
        for version in self.versions() {
            let rules = self.handle.rule().get(version.clone()).execute();
            let rules: Vec<RuleMessage> =
                rules.try_collect().await.map_err(refused("to tell its policy rules"))?;
            let ours = RuleAttribute::Priority(RULE_PREFERENCE);
            let rules = rules.iter().filter(|rule| rule.attributes.contains(&ours));
            lines.extend(rules.map(|rule| format!("{rule:?}")));
            // Ages and counters of a route change by themselves.
            let told = |attribute: &&RouteAttribute| {
                matches!(attribute, RouteAttribute::Destination(_) | RouteAttribute::Oif(_))
            };
            lines.extend(self.routes(&version).await?.iter().map(|route| {
                let attributes: Vec<_> = route.attributes.iter().filter(told).collect();
                format!("{:?} {attributes:?}", route.header)
            }));
        }
        Ok(lines)
    }

    /// Whether the loopback is up; runtimes take it down first when they take a pod down.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub(super) async fn loopback_is_up(&self) -> Result<bool, CaptureError> {
        let mut links = self.handle.link().get().match_index(LOOPBACK).execute();
        let link = links.try_next().await.map_err(refused("to tell of the loopback"))?;
        Ok(link.is_some_and(|link| link.header.flags.contains(LinkFlags::Up)))
    }

    /// The routes of the table.
    async fn routes(&self, version: &IpVersion) -> Result<Vec<RouteMessage>, CaptureError> {
        let any = match version {
            IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let all = self.handle.route().get(any).execute();
        let mut all: Vec<RouteMessage> =
            all.try_collect().await.map_err(refused("to tell its routes"))?;
        all.retain(|route| route.header.table == ROUTE_TABLE);
        Ok(all)
    }
}

/// Marked packets look into the table.
fn rule(version: &IpVersion) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = route(version).header.address_family;
    rule.header.table = ROUTE_TABLE;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(RULE_PREFERENCE),
        RuleAttribute::FwMark(CONNECTION_MARK),
        RuleAttribute::FwMask(MARK_MASK),
    ];
    rule
}

/// Everything is here.
fn route(version: &IpVersion) -> RouteMessage {
    let mut route = match version {
        IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    route.header.table = ROUTE_TABLE;
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.header.protocol = RouteProtocol::Boot;
    route.attributes.push(RouteAttribute::Oif(LOOPBACK));
    route
}

fn is_one_of(error: &Error, codes: &[Errno]) -> bool {
    let Error::NetlinkError(said) = error else { return false };
    // Netlink tells them below zero.
    codes.iter().any(|code| said.raw_code() == -code.raw_os_error())
}

fn refused(what: &'static str) -> impl Fn(Error) -> CaptureError {
    move |source| CaptureError::Kernel { what, source }
}
