// SPDX-License-Identifier: Apache-2.0

//! Keeps the indices of [`Discovery`] true while workloads and services come and go.
//!
//! Owns the order inside index entries and the merge of endpoint lists: the
//! changes of one batch to one service copy its list once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{
    Change, Discovery, Endpoint, Health, NetworkMode, Service, ServiceKey, Shards, TunnelProtocol,
    Workload,
};

/// Endpoints of one service that this batch puts (or, with `None`, takes out), by uid.
type EndpointEdits = BTreeMap<ServiceKey, BTreeMap<Arc<str>, Option<Endpoint>>>;

impl Discovery {
    /// Takes all `changes` in, in their order.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut edits = EndpointEdits::new();
        for change in changes {
            match change {
                Change::Workload(workload) => self.put_workload(workload, &mut edits),
                Change::Service(service) => self.put_service(service),
                Change::WorkloadGone(uid) => self.drop_workload(&uid, &mut edits),
                Change::ServiceGone(key) => self.drop_service(&key),
            }
        }
        for (key, edits) in edits {
            self.merge_endpoints(key, edits);
        }
    }

    fn put_workload(&mut self, workload: Arc<Workload>, edits: &mut EndpointEdits) {
        self.drop_workload(&workload.uid, edits);
        for (key, ports) in &workload.services {
            let endpoint = Endpoint { workload: Arc::clone(&workload), ports: Arc::clone(ports) };
            let edits = edits.entry(key.clone()).or_default();
            edits.insert(Arc::clone(&workload.uid), Some(endpoint));
        }
        if workload.network_mode == NetworkMode::Standard {
            for address in workload.network_addresses() {
                add(&mut self.by_address, address, &workload, workload_order);
            }
        }
        if let Some(pod_uid) = &workload.pod_uid {
            self.by_pod_uid.insert(Arc::clone(pod_uid), Arc::clone(&workload));
        }
        self.workloads.insert(Arc::clone(&workload.uid), workload);
    }

    fn drop_workload(&mut self, uid: &Arc<str>, edits: &mut EndpointEdits) {
        let Some(old) = self.workloads.remove(uid) else { return };
        for key in old.services.keys() {
            edits.entry(key.clone()).or_default().insert(Arc::clone(uid), None);
        }
        for address in old.network_addresses() {
            remove(&mut self.by_address, &address, |workload: &Arc<Workload>| workload.uid == *uid);
        }
        if let Some(pod_uid) = &old.pod_uid
            && self.by_pod_uid.get(pod_uid).is_some_and(|found| found.uid == *uid)
        {
            self.by_pod_uid.remove(pod_uid);
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        self.drop_service(&service.key);
        for address in &service.addresses {
            if address.address().is_none() {
                self.ranges.count(address.range);
            }
            add(&mut self.by_vip, address.clone(), &service, service_order);
        }
        let hostname = Arc::clone(&service.key.hostname);
        add(&mut self.by_hostname, hostname, &service, service_order);
        self.services.insert(service.key.clone(), service);
    }

    fn drop_service(&mut self, key: &ServiceKey) {
        let Some(old) = self.services.remove(key) else { return };
        for address in &old.addresses {
            if address.address().is_none() {
                self.ranges.forget(address.range);
            }
            remove(&mut self.by_vip, address, |service: &Arc<Service>| service.key == *key);
        }
        let same = |service: &Arc<Service>| service.key == *key;
        remove(&mut self.by_hostname, &old.key.hostname, same);
    }

    fn merge_endpoints(&mut self, key: ServiceKey, edits: BTreeMap<Arc<str>, Option<Endpoint>>) {
        let old = self.endpoints.get(&key).map_or(&[][..], |old| old);
        let mut merged = Vec::with_capacity(old.len() + edits.len());
        let mut edits = edits.into_iter().peekable();
        for endpoint in old {
            let uid = &endpoint.workload.uid;
            while let Some((_, edit)) = edits.next_if(|(edited, _)| edited < uid) {
                merged.extend(edit);
            }
            match edits.next_if(|(edited, _)| edited == uid) {
                Some((_, edit)) => merged.extend(edit),
                None => merged.push(endpoint.clone()),
            }
        }
        merged.extend(edits.filter_map(|(_, edit)| edit));
        if merged.is_empty() {
            self.endpoints.remove(&key);
        } else {
            self.endpoints.insert(key, merged.into());
        }
    }
}

/// Adds `item` to the list under `key`, which stays in the order of `rank`.
fn add<K, T, R>(index: &mut Shards<K, Arc<[Arc<T>]>>, key: K, item: &Arc<T>, rank: impl Fn(&T) -> R)
where
    K: Clone + Eq + std::hash::Hash,
    R: Ord,
{
    let mut list = index.get(&key).map_or_else(Vec::new, |list| list.to_vec());
    let place = list.partition_point(|other| rank(other) <= rank(item));
    // A name that says the same address twice is listed once.
    if list.iter().any(|other| Arc::ptr_eq(other, item)) {
        return;
    }
    list.insert(place, Arc::clone(item));
    index.insert(key, list.into());
}

/// Takes those that are `gone` off the list under `key`.
fn remove<K, T>(index: &mut Shards<K, Arc<[Arc<T>]>>, key: &K, gone: impl Fn(&Arc<T>) -> bool)
where
    K: Clone + Eq + std::hash::Hash,
{
    let Some(old) = index.get(key) else { return };
    let list: Vec<_> = old.iter().filter(|item| !gone(item)).cloned().collect();
    if list.len() == old.len() {
        return;
    }
    if list.is_empty() {
        index.remove(key);
    } else {
        index.insert(key.clone(), list.into());
    }
}

/// Of several workloads at one address the pod in the mesh is best, then another
/// pod, then another workload in the mesh (ztunnel's `src/state.rs`). Then the
/// healthy one: an address that came back belongs to the new pod, not to the one
/// on its way out. Ties by uid.
fn workload_order(workload: &Workload) -> (bool, bool, bool, Arc<str>) {
    let outside = workload.tunnel == TunnelProtocol::None;
    let unhealthy = workload.health == Health::Unhealthy;
    (!workload.is_pod(), outside, unhealthy, Arc::clone(&workload.uid))
}

/// Of several services of one name or address the canonical one is best; ties by key.
fn service_order(service: &Service) -> (bool, ServiceKey) {
    (!service.canonical, service.key.clone())
}

/// How many services have a range of each prefix length, so that a lookup tries only those.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeLengths {
    v4: BTreeMap<u8, usize>,
    v6: BTreeMap<u8, usize>,
}

impl RangeLengths {
    fn of(&mut self, range: IpNet) -> &mut BTreeMap<u8, usize> {
        match range {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }

    fn count(&mut self, range: IpNet) {
        *self.of(range).entry(range.prefix_len()).or_default() += 1;
    }

    fn forget(&mut self, range: IpNet) {
        let lengths = self.of(range);
        if let Some(count) = lengths.get_mut(&range.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&range.prefix_len());
            }
        }
    }

    /// Every range around `address` that some service may have, the narrowest first.
    pub(super) fn around(&self, address: IpAddr) -> impl Iterator<Item = IpNet> + '_ {
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let nets = lengths.keys().rev().flat_map(move |len| IpNet::new(address, *len));
        nets.map(|net| net.trunc())
    }
}
