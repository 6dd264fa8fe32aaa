// SPDX-License-Identifier: Apache-2.0

//! `productpage`: the page, its JSON forms, login and logout.
//!
//! Details and reviews are asked one after the other, each over a new connection with a
//! limit of three seconds; reviews are asked a second time when the first call fails.
//! A service that fails costs its part of the page, not the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use super::page;
use crate::http_call::{get, json as json_reply, reply};

/// How long one call to another service may take.
const LIMIT: Duration = Duration::from_secs(3);

/// The cookie that holds the name of the user who logged in.
const COOKIE: &str = "session";

/// The longest user name taken at login, in bytes.
const MAX_USER: usize = 64;

struct Productpage {
    details: String,
    reviews: String,
    ratings: String,
    /// Answers of other services by service and status, for `/metrics`.
    results: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

/// Serves the product page at `port`.
///
/// # Errors
///
/// When the port cannot be had.
pub async fn run(port: u16) -> anyhow::Result<()> {
    let this = Arc::new(Productpage {
        details: super::authority_of("details"),
        reviews: super::authority_of("reviews"),
        ratings: super::authority_of("ratings"),
        results: Mutex::new(BTreeMap::new()),
    });
    crate::http_serve::serve(port, move |request| {
        let this = Arc::clone(&this);
        async move { this.answer(request).await }
    })
    .await
}

impl Productpage {
    async fn answer(&self, request: Request<Bytes>) -> Response<Bytes> {
        let user = user_of(request.headers());
        let mut headers = super::forwarded(request.headers());
        if let Some(user) = user.as_deref().and_then(|user| HeaderValue::from_str(user).ok()) {
            headers.insert("end-user", user);
        }
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::POST, "/login") => login(&request),
            (&Method::GET, "/logout") => logout(request.headers()),
            (&Method::GET, "/" | "/index.html") => html(page::index()),
            (&Method::GET, "/health") => {
                reply(StatusCode::OK, "text/plain", "Product page is healthy")
            }
            (&Method::GET, "/productpage") => self.page(user.as_deref(), &headers).await,
            (&Method::GET, "/static/style.css") => {
                reply(StatusCode::OK, "text/css; charset=utf-8", page::STYLE)
            }
            (&Method::GET, "/metrics") => self.metrics(),
            (&Method::GET, "/api/v1/products") => {
                json_reply(StatusCode::OK, &json!([page::product()]))
            }
            (&Method::GET, path) => match path.strip_prefix("/api/v1/products/") {
                Some(rest) => self.api(rest, &headers).await,
                None => reply(StatusCode::NOT_FOUND, "text/plain", "not found"),
            },
            (_, _) => reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "method is not served"),
        }
    }

    async fn page(&self, user: Option<&str>, headers: &HeaderMap) -> Response<Bytes> {
        let details = self.ask("details", "/details/0", headers).await;
        let mut reviews = self.ask("reviews", "/reviews/0", headers).await;
        if reviews.status() != StatusCode::OK {
            reviews = self.ask("reviews", "/reviews/0", headers).await;
        }
        html(page::product_page(user, &part(&details), &part(&reviews)))
    }

    /// `/api/v1/products/<id>`, `.../reviews`, `.../ratings`: what the other service said.
    async fn api(&self, rest: &str, headers: &HeaderMap) -> Response<Bytes> {
        let (id, what) = rest.split_once('/').unwrap_or((rest, "details"));
        let Ok(id) = id.parse::<u64>() else {
            return json_reply(
                StatusCode::BAD_REQUEST,
                &json!({"error": "please provide numeric product id"}),
            );
        };
        let service = match what {
            "details" | "" => "details",
            "reviews" => "reviews",
            "ratings" => "ratings",
            _ => return reply(StatusCode::NOT_FOUND, "text/plain", "not found"),
        };
        self.ask(service, &format!("/{service}/{id}"), headers).await
    }

    /// The answer of `service`, or one of our own that says it is not available.
    async fn ask(&self, service: &'static str, path: &str, headers: &HeaderMap) -> Response<Bytes> {
        let authority = match service {
            "details" => &self.details,
            "reviews" => &self.reviews,
            _ => &self.ratings,
        };
        let answer = match get(authority, path, headers, LIMIT).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                json_bytes(StatusCode::OK, answer.into_body())
            }
            Ok(answer) => unavailable(service, answer.status()),
            Err(_) => unavailable(service, StatusCode::INTERNAL_SERVER_ERROR),
        };
        let key = (service, answer.status().as_u16());
        *self.results.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
        answer
    }

    fn metrics(&self) -> Response<Bytes> {
        let mut text = String::from(
            "# HELP request_result_total Results of requests to other services.\n\
             # TYPE request_result_total counter\n",
        );
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        for ((service, status), count) in results.iter() {
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                text,
                "request_result_total{{destination_app=\"{service}\",response_code=\"{status}\"}} \
                 {count}"
            );
        }
        reply(StatusCode::OK, "text/plain; version=0.0.4", text)
    }
}

fn html(text: String) -> Response<Bytes> {
    reply(StatusCode::OK, "text/html; charset=utf-8", text)
}

fn json_bytes(status: StatusCode, body: Bytes) -> Response<Bytes> {
    reply(status, "application/json", body)
}

fn unavailable(service: &str, status: StatusCode) -> Response<Bytes> {
    let text = format!("Sorry, product {service} are currently unavailable for this book.");
    json_reply(status, &json!({ "error": text }))
}

/// The JSON of a good answer, or the sentence to show in its place.
fn part(answer: &Response<Bytes>) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    if answer.status() == StatusCode::OK {
        return Ok(value);
    }
    let error = value.get("error").and_then(Value::as_str).unwrap_or("unknown error");
    Err(error.to_owned())
}

fn login(request: &Request<Bytes>) -> Response<Bytes> {
    let body = String::from_utf8_lossy(request.body());
    let user = body
        .split('&')
        .find_map(|field| field.strip_prefix("username="))
        .map(form_decoded)
        .unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    if user.is_empty() || user.len() > MAX_USER || !user.bytes().all(plain) {
        return reply(
            StatusCode::BAD_REQUEST,
            "text/plain",
            "a user name is 1 to 64 letters, digits, '-', '_', '.' or '@'",
        );
    }
    back(request.headers(), &format!("{COOKIE}={user}; Path=/; HttpOnly; SameSite=Lax"))
}

fn logout(headers: &HeaderMap) -> Response<Bytes> {
    back(headers, &format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"))
}

/// Sends the browser back to the page, with `cookie` set.
///
/// Only the path of the referrer is used: a foreign one must not make this an open redirect.
fn back(headers: &HeaderMap, cookie: &str) -> Response<Bytes> {
    let referrer = headers
        .get(header::REFERER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<http::Uri>().ok());
    let path = referrer.as_ref().map_or("/productpage", http::Uri::path);
    let path = if path.starts_with("//") { "/productpage" } else { path };
    let mut response = reply(StatusCode::FOUND, "text/plain", "");
    let fields = [(header::LOCATION, path), (header::SET_COOKIE, cookie)];
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The user who logged in, from the session cookie.
fn user_of(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
        .find(|user| !user.is_empty() && user.len() <= MAX_USER)
        .map(str::to_owned)
}

/// `text` with `+` and `%XX` of a form undone; what is not UTF-8 becomes U+FFFD.
fn form_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                match (digit(*high), digit(*low)) {
                    (Some(high), Some(low)) => {
                        bytes.push(high * 16 + low);
                        rest = tail;
                    }
                    (_, _) => bytes.push(first),
                }
            }
            (b'+', _) => bytes.push(b' '),
            (_, _) => bytes.push(first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Productpage {
        Productpage {
            // Port 9 of the loopback: nothing listens, calls fail at once.
            details: "127.0.0.1:9".into(),
            reviews: "127.0.0.1:9".into(),
            ratings: "127.0.0.1:9".into(),
            results: Mutex::new(BTreeMap::new()),
        }
    }

    #[tokio::test]
    async fn a_page_without_its_services_is_still_a_page() {
        let request = Request::get("/productpage").body(Bytes::new()).unwrap();
        let response = page().answer(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let text = String::from_utf8(response.into_body().to_vec()).unwrap();
        for service in ["details", "reviews"] {
            let want = format!("Sorry, product {service} are currently unavailable");
            assert!(text.contains(&want), "{service}");
        }
    }

    #[tokio::test]
    async fn the_api_passes_the_failure_of_a_service_on() {
        let request = Request::get("/api/v1/products/0/reviews").body(Bytes::new()).unwrap();
        assert_eq!(page().answer(request).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let request = Request::get("/api/v1/products/x").body(Bytes::new()).unwrap();
        assert_eq!(page().answer(request).await.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn login_sets_the_user_and_goes_back_to_the_own_page_only() {
        let request = Request::post("/login")
            .header("referer", "http://evil.example//other.example/x")
            .body(Bytes::from("username=jason&passwd="))
            .unwrap();
        let response = login(&request);
        assert_eq!(response.status(), StatusCode::FOUND);
        assert_eq!(response.headers()["location"], "/productpage");
        let cookie = response.headers()["set-cookie"].to_str().unwrap();
        assert!(cookie.starts_with("session=jason;"), "{cookie}");
    }

    #[test]
    fn a_user_name_that_is_not_plain_is_refused() {
        for name in ["", "a%0d%0ab", "x+y", "%3Cscript%3E"] {
            let request =
                Request::post("/login").body(Bytes::from(format!("username={name}"))).unwrap();
            assert_eq!(login(&request).status(), StatusCode::BAD_REQUEST, "{name:?}");
        }
    }

    #[test]
    fn the_session_cookie_names_the_user() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", "a=b; session=jason; c=d".parse().unwrap());
        assert_eq!(user_of(&headers).as_deref(), Some("jason"));
    }
}
