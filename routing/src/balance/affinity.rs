// SPDX-License-Identifier: Apache-2.0

//! Which endpoint a client keeps, by nothing but its address.
//!
//! Every candidate draws a lot that only the client's address and the candidate's uid decide,
//! and the best one wins. So every proxy gives the same answer without having to remember
//! anything, and an endpoint that comes or goes moves only the clients that are or were its own.
//!
//! Rule: rendezvous hashing, weighted by capacity; Kubernetes `sessionAffinity: ClientIP`, whose
//! timeout is never less than asked for.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::{Candidate, Rolls};

/// The best of `candidates` for `client` that is not `out`.
pub(super) fn best<'a>(
    candidates: &'a [Candidate],
    client: IpAddr,
    out: &impl Fn(&Candidate) -> bool,
) -> Option<&'a Candidate> {
    let drawn = candidates.iter().filter(|one| !out(one)).map(|one| (lot(one, client), one));
    drawn.min_by(|one, two| before(*one, *two)).map(|(_, best)| best)
}

/// All of `candidates`, the best for `client` first.
pub(super) fn order(candidates: &[Candidate], client: IpAddr) -> Vec<&Candidate> {
    let mut drawn: Vec<_> = candidates.iter().map(|one| (lot(one, client), one)).collect();
    drawn.sort_by(|one, two| before(*one, *two));
    drawn.into_iter().map(|(_, one)| one).collect()
}

fn before(one: (f64, &Candidate), two: (f64, &Candidate)) -> Ordering {
    one.0.total_cmp(&two.0).then_with(|| one.1.workload.uid.cmp(&two.1.workload.uid))
}

/// The lot that `candidate` draws for `client`; the least wins. Exponential, with the capacity
/// as its rate, so that shares are as the capacities.
fn lot(candidate: &Candidate, client: IpAddr) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match client.to_canonical() {
        IpAddr::V4(client) => add(&client.octets()),
        IpAddr::V6(client) => add(&client.octets()),
    }
    add(candidate.workload.uid.as_bytes());
    let high = u32::try_from(Rolls::new(hash).roll() >> 32).unwrap_or(u32::MAX);
    let uniform = (f64::from(high) + 1.0) / (f64::from(u32::MAX) + 1.0);
    -uniform.ln() / f64::from(candidate.workload.capacity.max(1))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::l4::tests::pod;

    fn candidates(capacities: &[u32]) -> Vec<Candidate> {
        let made = capacities.iter().enumerate().map(|(number, capacity)| {
            let mut workload = pod("default", &format!("pod-{number}"), "10.0.0.1");
            workload.capacity = *capacity;
            Candidate { workload: Arc::new(workload), port: 80, tier: 0 }
        });
        made.collect()
    }

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn kept(candidates: &[Candidate], number: u32) -> &str {
        &best(candidates, client(number), &|_| false).unwrap().workload.uid
    }

    #[test]
    fn a_client_keeps_its_endpoint_and_moves_only_if_that_goes() {
        let all = candidates(&[1, 1, 1, 1]);
        let gone = &all[2].workload.uid;
        let left: Vec<Candidate> =
            all.iter().filter(|one| one.workload.uid != *gone).cloned().collect();
        for number in 0..1_000 {
            let before = kept(&all, number);
            assert_eq!(before, kept(&all, number), "asked again");
            let ordered = order(&all, client(number));
            assert_eq!(&*ordered[0].workload.uid, before, "the first to try");
            if before == &**gone {
                assert_eq!(kept(&left, number), &*ordered[1].workload.uid, "the next to try");
            } else {
                assert_eq!(kept(&left, number), before, "{number} was not at it");
            }
            let mapped =
                best(&all, format!("::ffff:{}", client(number)).parse().unwrap(), &|_| false);
            assert_eq!(&*mapped.unwrap().workload.uid, before);
        }
    }

    #[test]
    fn shares_are_as_the_capacities() {
        let all = candidates(&[1, 3]);
        let second = (0..10_000).filter(|number| kept(&all, *number) == &*all[1].workload.uid);
        let share = second.count();
        assert!((7_200..=7_800).contains(&share), "three quarters of 10,000: {share}");
    }
}
