// SPDX-License-Identifier: Apache-2.0

//! `ratings`: stars for each reviewer, kept in memory.
//!
//! `SERVICE_VERSION` makes it misbehave for demonstrations: `v-faulty` fails half of the
//! calls, `v-delayed` holds half of them for seven seconds, `v-unavailable` turns off and on
//! each minute, `v-unhealthy` fails its health check for fifteen minutes of each half hour.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::http_call::{json as json_reply, reply};

struct Ratings {
    version: String,
    begun: Instant,
    calls: AtomicU64,
    stored: Mutex<BTreeMap<u64, Value>>,
}

/// Serves ratings at `port`.
///
/// # Errors
///
/// When the port cannot be had.
pub async fn run(port: u16) -> anyhow::Result<()> {
    let ratings = Arc::new(Ratings::new(super::setting("SERVICE_VERSION", "v1")));
    crate::http_serve::serve(port, move |request| {
        let ratings = Arc::clone(&ratings);
        async move { ratings.answer(request).await }
    })
    .await
}

impl Ratings {
    fn new(version: String) -> Self {
        Self {
            version,
            begun: Instant::now(),
            calls: AtomicU64::new(0),
            stored: Mutex::new(BTreeMap::new()),
        }
    }

    async fn answer(&self, request: Request<Bytes>) -> Response<Bytes> {
        let path = request.uri().path();
        if path == "/health" {
            return self.health();
        }
        let id = match super::id_after(path, "/ratings/") {
            Some(Ok(id)) => id,
            Some(Err(())) => {
                return json_reply(
                    StatusCode::BAD_REQUEST,
                    &json!({"error": "please provide numeric product ID"}),
                );
            }
            None => return reply(StatusCode::NOT_FOUND, "text/plain", "not found"),
        };
        match *request.method() {
            Method::GET => self.read(id).await,
            Method::POST => self.write(id, request.body()),
            _ => reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET and POST are served"),
        }
    }

    fn health(&self) -> Response<Bytes> {
        let quarter_hours = self.begun.elapsed().as_secs() / 900;
        if self.version == "v-unhealthy" && quarter_hours % 2 == 1 {
            let status = json!({"status": "Ratings is not healthy"});
            return json_reply(StatusCode::INTERNAL_SERVER_ERROR, &status);
        }
        json_reply(StatusCode::OK, &json!({"status": "Ratings is healthy"}))
    }

    async fn read(&self, id: u64) -> Response<Bytes> {
        let odd_call = self.calls.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let odd_minute = (self.begun.elapsed().as_secs() / 60) % 2 == 1;
        let unavailable = json!({"error": "Service unavailable"});
        match self.version.as_str() {
            "v-faulty" if odd_call => {
                return json_reply(StatusCode::SERVICE_UNAVAILABLE, &unavailable);
            }
            "v-unavailable" if odd_minute => {
                return json_reply(StatusCode::SERVICE_UNAVAILABLE, &unavailable);
            }
            "v-delayed" if odd_call => tokio::time::sleep(Duration::from_secs(7)).await,
            _ => {}
        }
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let stars = stored.unwrap_or_else(|| json!({"Reviewer1": 5, "Reviewer2": 4}));
        json_reply(StatusCode::OK, &json!({"id": id, "ratings": stars}))
    }

    fn write(&self, id: u64, body: &Bytes) -> Response<Bytes> {
        let Ok(stars) = serde_json::from_slice::<BTreeMap<String, u8>>(body) else {
            return json_reply(
                StatusCode::BAD_REQUEST,
                &json!({"error": "please provide valid ratings JSON"}),
            );
        };
        let stars = json!(stars);
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(id, stars.clone());
        json_reply(StatusCode::OK, &json!({"id": id, "ratings": stars}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(ratings: &Ratings, path: &str) -> Response<Bytes> {
        ratings.answer(Request::get(path).body(Bytes::new()).unwrap()).await
    }

    #[tokio::test]
    async fn what_was_posted_is_read_back() {
        let ratings = Ratings::new("v1".into());
        let posted = Request::post("/ratings/3").body(Bytes::from(r#"{"Ann":2}"#)).unwrap();
        assert_eq!(ratings.answer(posted).await.status(), StatusCode::OK);
        assert_eq!(get(&ratings, "/ratings/3").await.body(), r#"{"id":3,"ratings":{"Ann":2}}"#);
        let other = get(&ratings, "/ratings/4").await;
        assert_eq!(other.body(), r#"{"id":4,"ratings":{"Reviewer1":5,"Reviewer2":4}}"#);
    }

    #[tokio::test]
    async fn the_faulty_version_fails_every_second_call() {
        let ratings = Ratings::new("v-faulty".into());
        assert_eq!(get(&ratings, "/ratings/0").await.status(), StatusCode::OK);
        assert_eq!(get(&ratings, "/ratings/0").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
