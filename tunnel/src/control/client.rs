// SPDX-License-Identifier: Apache-2.0

//! Keeps the discovery stream with the controller.
//!
//! Owns connecting, reconnecting and the order of messages. Leaves what is
//! subscribed to `routing::stream::client`, and resources to an [`Apply`].
//!
//! Keeps: each response is applied before it is answered; what was applied
//! stays while the controller is away.
//!
//! Start at [`follow`].

use http::uri::PathAndQuery;
use routing::stream::client::Client;
use routing::stream::{
    DELTA_AGGREGATED_RESOURCES, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Rejected,
};
use routing::wire::chain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic_prost::ProstCodec;

use super::backoff::Backoff;
use super::{ControlError, Controller, MAX_MESSAGE};

/// Answers under way; the controller sends the next response only after an answer.
const QUEUE: usize = 64;

/// What takes the resources.
pub trait Apply {
    /// Applies a response whole, but for those resources that it names.
    fn apply(&mut self, response: &DeltaDiscoveryResponse) -> Vec<Rejected>;

    /// Every kind has been answered once; called at every later answer too.
    fn complete(&mut self) {}

    /// The stream has ended, or could not be opened.
    fn disconnected(&mut self, why: &ControlError) {
        tracing::warn!(error = %chain(why), "no stream with the controller");
    }
}

/// Follows the controller for ever: connects, applies, answers, and connects again.
pub async fn follow(controller: &Controller, mut client: Client, sink: &mut impl Apply) {
    let mut backoff = Backoff::CONTROLLER;
    loop {
        let why = match session(controller, &mut client, sink, &mut backoff).await {
            Ok(()) => ControlError::Ended,
            Err(why) => why,
        };
        sink.disconnected(&why);
        tokio::time::sleep(backoff.wait()).await;
    }
}

async fn session(
    controller: &Controller,
    client: &mut Client,
    sink: &mut impl Apply,
    backoff: &mut Backoff,
) -> Result<(), ControlError> {
    let channel = controller.connect().await?;
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    grpc.ready().await.map_err(ControlError::Connect)?;
    let (answers, queue) = mpsc::channel(QUEUE);
    for first in client.connect() {
        if answers.send(first).await.is_err() {
            return Ok(());
        }
    }
    let request = controller.request(ReceiverStream::new(queue))?;
    let path = PathAndQuery::from_static(DELTA_AGGREGATED_RESOURCES);
    let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
    let mut responses = grpc.streaming(request, path, codec).await?.into_inner();
    tracing::info!(controller = controller.address, "stream with the controller is open");
    while let Some(response) = responses.message().await? {
        backoff.reset();
        let rejected = sink.apply(&response);
        for one in &rejected {
            tracing::warn!(name = %one.name, reason = %one.reason, "resource was refused");
        }
        let answer = client.answer(&response, &rejected);
        if answers.send(answer).await.is_err() {
            return Ok(());
        }
        if client.is_complete() {
            sink.complete();
        }
    }
    Ok(())
}
