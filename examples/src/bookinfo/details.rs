// SPDX-License-Identifier: Apache-2.0

//! `details`: the facts about a book.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::http_call::{json as json_reply, reply};

/// Serves details at `port`.
///
/// # Errors
///
/// When the port cannot be had.
pub async fn run(port: u16) -> anyhow::Result<()> {
    crate::http_serve::serve(port, |request| async move { answer(&request) }).await
}

fn answer(request: &Request<Bytes>) -> Response<Bytes> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET, "/health") => {
            json_reply(StatusCode::OK, &json!({"status": "Details is healthy"}))
        }
        (&Method::GET, path) => match super::id_after(path, "/details/") {
            Some(Ok(id)) => json_reply(StatusCode::OK, &book(id)),
            Some(Err(())) => json_reply(
                StatusCode::BAD_REQUEST,
                &json!({"error": "please provide numeric product id"}),
            ),
            None => reply(StatusCode::NOT_FOUND, "text/plain", "not found"),
        },
        (_, _) => reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is served"),
    }
}

fn book(id: u64) -> serde_json::Value {
    json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_answers_by_path() {
        let cases = [
            ("/health", StatusCode::OK),
            ("/details/0", StatusCode::OK),
            ("/details/zero", StatusCode::BAD_REQUEST),
            ("/", StatusCode::NOT_FOUND),
        ];
        for (path, want) in cases {
            let request = Request::get(path).body(Bytes::new()).unwrap();
            assert_eq!(answer(&request).status(), want, "{path}");
        }
    }
}
