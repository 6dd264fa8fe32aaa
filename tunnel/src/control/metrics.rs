// SPDX-License-Identifier: Apache-2.0

//! Counters of the stream with the controller, under Istio's names.
//!
//! Rule: ztunnel's `src/xds/metrics.rs`.

use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prost::Message as _;
use routing::delta::Kind;
use routing::stream::DeltaDiscoveryResponse;

use super::ControlError;

/// Why a stream ended, in Istio's words.
const REASONS: [&str; 3] = ["ConnectionError", "Error", "Complete"];

/// What came over all streams of this process.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    messages: [AtomicU64; Kind::ALL.len()],
    bytes: [AtomicU64; Kind::ALL.len()],
    ended: [AtomicU64; REASONS.len()],
}

fn add(counter: Option<&AtomicU64>, count: usize) {
    if let Some(counter) = counter {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl StreamMetrics {
    /// Counts a response; one of an unknown kind is none of ours.
    pub fn received(&self, response: &DeltaDiscoveryResponse) {
        let place = Kind::ALL.iter().position(|kind| kind.type_url() == response.type_url);
        let Some(place) = place else { return };
        add(self.messages.get(place), 1);
        add(self.bytes.get(place), response.encoded_len());
    }

    /// Counts the end of a stream, or that none came to be.
    pub fn ended(&self, why: &ControlError) {
        let reason = match why {
            ControlError::Address(_)
            | ControlError::Roots(..)
            | ControlError::Token(..)
            | ControlError::TokenText(_)
            | ControlError::Connect(_) => "ConnectionError",
            ControlError::Status(_) => "Error",
            ControlError::Ended => "Complete",
        };
        let place = REASONS.iter().position(|one| *one == reason);
        add(place.and_then(|place| self.ended.get(place)), 1);
    }
}

impl Collector for StreamMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let urls = || Kind::ALL.iter().map(|kind| ("url", kind.type_url()));
        let reasons = REASONS.map(|reason| ("reason", reason));
        let families: [(&str, &str, Vec<_>, &[AtomicU64]); 3] = [
            ("istio_xds_message", "Responses of the controller", urls().collect(), &self.messages),
            ("istio_xds_message_bytes", "Their bytes", urls().collect(), &self.bytes),
            (
                "istio_xds_connection_terminations",
                "Streams that ended",
                reasons.into(),
                &self.ended,
            ),
        ];
        for (name, help, labels, counts) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (label, count) in labels.into_iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let label = [label];
                    let mut one = family.encode_family(&label)?;
                    one.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn responses_and_ends_are_counted_under_istios_names() {
        let metrics = Arc::<StreamMetrics>::default();
        let type_url = Kind::Address.type_url().to_owned();
        let response = DeltaDiscoveryResponse { type_url, ..DeltaDiscoveryResponse::default() };
        metrics.received(&response);
        metrics.received(&response);
        metrics.received(&DeltaDiscoveryResponse::default());
        metrics.ended(&ControlError::Ended);
        metrics.ended(&ControlError::from(tonic::Status::unavailable("away")));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&metrics)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let address = "{url=\"type.googleapis.com/istio.workload.Address\"}";
        let bytes = 2 * response.encoded_len();
        for line in [
            format!("istio_xds_message_total{address} 2\n"),
            format!("istio_xds_message_bytes_total{address} {bytes}\n"),
            "istio_xds_connection_terminations_total{reason=\"Complete\"} 1\n".to_owned(),
            "istio_xds_connection_terminations_total{reason=\"Error\"} 1\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(!text.contains("Reconnect"), "{text}");
    }
}
