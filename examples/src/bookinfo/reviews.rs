// SPDX-License-Identifier: Apache-2.0

//! `reviews`: two reviews of a book, with stars when `ENABLE_RATINGS` is `true`.
//!
//! Version 1 asks no ratings, version 2 shows black stars, version 3 red ones.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::http_call::{get, json as json_reply, reply};

struct Reviews {
    with_ratings: bool,
    color: String,
    pod: String,
    cluster: String,
    ratings: String,
}

/// Serves reviews at `port`.
///
/// # Errors
///
/// When the port cannot be had.
pub async fn run(port: u16) -> anyhow::Result<()> {
    let reviews = Arc::new(Reviews {
        with_ratings: super::setting("ENABLE_RATINGS", "false") == "true",
        color: super::setting("STAR_COLOR", "black"),
        pod: super::setting("HOSTNAME", "null"),
        cluster: super::setting("CLUSTER_NAME", "null"),
        ratings: super::authority_of("ratings"),
    });
    crate::http_serve::serve(port, move |request| {
        let reviews = Arc::clone(&reviews);
        async move { reviews.answer(request).await }
    })
    .await
}

impl Reviews {
    async fn answer(&self, request: Request<Bytes>) -> Response<Bytes> {
        let path = request.uri().path();
        if request.method() != Method::GET {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is served");
        }
        if path == "/health" {
            return json_reply(StatusCode::OK, &json!({"status": "Reviews is healthy"}));
        }
        match super::id_after(path, "/reviews/") {
            Some(Ok(id)) => {
                let stars = match self.with_ratings {
                    true => Some(self.stars(id, &super::forwarded(request.headers())).await),
                    false => None,
                };
                json_reply(StatusCode::OK, &self.reviews(id, stars.as_ref()))
            }
            Some(Err(())) => json_reply(
                StatusCode::BAD_REQUEST,
                &json!({"error": "please provide numeric product id"}),
            ),
            None => reply(StatusCode::NOT_FOUND, "text/plain", "not found"),
        }
    }

    /// Stars by reviewer, or nothing when ratings gives no usable answer in time.
    async fn stars(&self, id: u64, headers: &HeaderMap) -> Option<Value> {
        let limit = if self.color == "black" { 10_000 } else { 2_500 };
        let path = format!("/ratings/{id}");
        let answer = get(&self.ratings, &path, headers, Duration::from_millis(limit)).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        serde_json::from_slice::<Value>(answer.body()).ok()?.get("ratings").cloned()
    }

    /// `stars`: not asked, asked in vain, or the stars by reviewer.
    fn reviews(&self, id: u64, stars: Option<&Option<Value>>) -> Value {
        let review = |reviewer: &str, text: &str| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            if let (Some(stars), Some(fields)) = (stars, review.as_object_mut()) {
                let rating = match stars.as_ref().and_then(|stars| stars.get(reviewer)) {
                    Some(count) => json!({"stars": count, "color": self.color}),
                    None => json!({"error": "Ratings service is currently unavailable"}),
                };
                fields.insert("rating".to_owned(), rating);
            }
            review
        };
        json!({
            "id": id.to_string(),
            "podname": self.pod,
            "clustername": self.cluster,
            "reviews": [
                review("Reviewer1", "Two pairs of twins, one city, and not a dull scene. A joy."),
                review("Reviewer2", "Great fun, although the plot leans hard on coincidence."),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(with_ratings: bool, color: &str) -> Reviews {
        Reviews {
            with_ratings,
            color: color.into(),
            pod: "reviews-v1-0".into(),
            cluster: "null".into(),
            ratings: "127.0.0.1:9".into(),
        }
    }

    #[test]
    fn version_one_shows_no_stars() {
        let reviews = version(false, "black").reviews(0, None);
        assert!(reviews["reviews"][0].get("rating").is_none());
        assert_eq!(reviews["id"], "0");
    }

    #[test]
    fn stars_carry_the_color_of_the_version() {
        let stars = Some(json!({"Reviewer1": 5, "Reviewer2": 4}));
        let reviews = version(true, "red").reviews(0, Some(&stars));
        assert_eq!(reviews["reviews"][1]["rating"], json!({"stars": 4, "color": "red"}));
    }

    #[test]
    fn a_missing_rating_is_told_with_the_review() {
        let reviews = version(true, "red").reviews(0, Some(&None));
        let error = &reviews["reviews"][0]["rating"]["error"];
        assert_eq!(error, "Ratings service is currently unavailable");
    }
}
