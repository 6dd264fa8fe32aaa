// SPDX-License-Identifier: Apache-2.0

//! A map in shards, so that a changed copy shares all shards but one.
//!
//! Cloning counts one reference. The first change after a clone copies the
//! list of shards and the one shard that it touches; further changes of the
//! same batch copy only shards not touched before. A map of few keys is one
//! shard: most maps are, and those cost no list; a map of none costs nothing.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::sync::Arc;

/// Hashing without a seed: the same keys lie in the same shards in every run.
/// Keys come from the controller alone, so nobody can aim at collisions.
pub(crate) type Fixed = BuildHasherDefault<DefaultHasher>;
type Shard<K, V> = HashMap<K, V, Fixed>;

/// Enough that one shard of 100,000 keys is copied in some microseconds.
const SHARDS: usize = 256;
/// Keys of a map that is one shard; copying more takes longer than copying the list.
const FEW: usize = 128;

/// A map whose clones share unchanged shards.
pub(crate) struct Shards<K, V> {
    form: Form<K, V>,
    len: usize,
}

enum Form<K, V> {
    /// Of few keys; none: of no key, as thousands are.
    One(Option<Arc<Shard<K, V>>>),
    Many(Arc<[Arc<Shard<K, V>>; SHARDS]>),
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { form: Form::One(None), len: 0 }
    }
}

impl<K, V> Clone for Shards<K, V> {
    fn clone(&self) -> Self {
        let form = match &self.form {
            Form::One(shard) => Form::One(shard.clone()),
            Form::Many(shards) => Form::Many(Arc::clone(shards)),
        };
        Self { form, len: self.len }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shards().iter().flat_map(|shard| shard.iter())).finish()
    }
}

/// The shard of a key. Tables inside a shard use the lowest and highest bits
/// of the same hash, so these come from the middle.
fn place<Q: Hash + ?Sized>(key: &Q) -> usize {
    let middle = (Fixed::default().hash_one(key) >> 32) % SHARDS as u64;
    usize::try_from(middle).unwrap_or_default()
}

impl<K, V> Shards<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards().iter().flat_map(|shard| shard.values())
    }

    fn shards(&self) -> &[Arc<Shard<K, V>>] {
        match &self.form {
            Form::One(shard) => shard.as_slice(),
            Form::Many(shards) => shards.as_slice(),
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        match &self.form {
            Form::One(shard) => shard.as_ref()?.get(key),
            Form::Many(shards) => shards.get(place(key))?.get(key),
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a place is below the number of shards")]
    fn shard_mut<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut Shard<K, V> {
        match &mut self.form {
            Form::One(shard) => Arc::make_mut(shard.get_or_insert_default()),
            Form::Many(shards) => Arc::make_mut(&mut Arc::make_mut(shards)[place(key)]),
        }
    }

    /// Puts `value` under `key` and gives back what was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.shard_mut(&key).insert(key, value);
        self.grow(old.is_none());
        old
    }

    /// The value under `key`, made if need be.
    pub(crate) fn entry(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        if self.get(key).is_none() {
            self.insert(key.clone(), V::default());
        }
        self.shard_mut(key).entry(key.clone()).or_default()
    }

    /// Takes `key` out and gives back what was there.
    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.get(key)?;
        let old = self.shard_mut(key).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Counts a key that came; from some number on the map is in many shards, for good.
    fn grow(&mut self, came: bool) {
        self.len += usize::from(came);
        if let Form::One(Some(shard)) = &mut self.form
            && self.len > FEW
        {
            let all = std::mem::take(Arc::make_mut(shard));
            let empty = Arc::default();
            self.form = Form::Many(Arc::new(std::array::from_fn(|_| Arc::clone(&empty))));
            for (key, value) in all {
                self.shard_mut(&key).insert(key, value);
            }
        }
    }

    /// How many shards `self` and `other` hold in common.
    #[cfg(test)]
    pub(crate) fn shared(&self, other: &Self) -> usize {
        let pairs = self.shards().iter().zip(other.shards());
        pairs.filter(|(one, two)| Arc::ptr_eq(one, two)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_copies_one_shard_and_leaves_the_older_copy_alone() {
        let mut old = Shards::default();
        for key in 0..10_000_u32 {
            assert_eq!(old.insert(key, key), None);
        }
        let mut new = old.clone();
        assert_eq!(new.shared(&old), SHARDS);
        assert_eq!(new.insert(7, 70), Some(7));
        assert_eq!(new.shared(&old), SHARDS - 1);
        assert_eq!((old.get(&7), new.get(&7)), (Some(&7), Some(&70)));
        assert_eq!(new.remove(&7), Some(70));
        assert_eq!(new.remove(&7), None);
        assert_eq!((old.len(), new.len()), (10_000, 9_999));
        assert_eq!(new.values().count(), 9_999);
    }

    #[test]
    fn taking_out_what_is_not_there_copies_nothing() {
        let mut old = Shards::default();
        old.insert(1, ());
        let mut new = old.clone();
        assert_eq!(new.remove(&2), None);
        assert_eq!(new.shared(&old), 1);
    }

    #[test]
    fn a_map_that_grows_keeps_its_keys_and_leaves_the_older_copy_alone() {
        let mut map = Shards::default();
        for key in 0..FEW {
            *map.entry(&key) = key;
        }
        assert!(matches!(map.form, Form::One(_)));
        let old = map.clone();
        *map.entry(&FEW) = FEW;
        assert!(matches!((&old.form, &map.form), (Form::One(_), Form::Many(_))));
        assert_eq!((old.len(), map.len()), (FEW, FEW + 1));
        for key in 0..=FEW {
            assert_eq!(map.get(&key), Some(&key));
            assert_eq!(old.get(&key).is_some(), key < FEW);
        }
        *map.entry(&3) += 1;
        assert_eq!((map.get(&3), map.len()), (Some(&4), FEW + 1));
        for key in 0..=FEW {
            assert!(map.remove(&key).is_some());
        }
        assert!(map.is_empty() && map.get(&3).is_none());
    }

    #[test]
    fn keys_spread_over_the_shards() {
        let mut map = Shards::default();
        for key in 0..25_600_u32 {
            map.insert(key, ());
        }
        let fullest = map.shards().iter().map(|shard| shard.len()).max().unwrap();
        assert!(fullest < 200, "{fullest} keys in one shard, 100 is the mean");
    }
}
