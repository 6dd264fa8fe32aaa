// SPDX-License-Identifier: Apache-2.0

//! HTTP load: kept-alive connections, or a new one for each request.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Report, Tally, Until, all};

/// What to send, where, and how.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to connect.
    pub address: SocketAddr,
    /// A `name:port` to look up anew for each connection, instead of `address`.
    pub name: Option<String>,
    /// `Host` of the requests.
    pub host: String,
    /// Path and query of the requests.
    pub path: String,
    /// More request headers.
    pub headers: HeaderMap,
    /// Clients at once, each with one request in flight.
    pub clients: usize,
    /// A new connection for each request.
    pub fresh: bool,
    /// Requests each second over all clients; none: as fast as answers come.
    pub rate: Option<u32>,
    /// The longest wait for one whole answer.
    pub limit: Duration,
    /// Which response header, if any, to count answers by; else the status.
    pub count_by: Option<String>,
}

impl Load {
    /// Kept-alive GETs for `path` by one client, as fast as answers come.
    pub fn get(address: SocketAddr, host: &str, path: &str) -> Self {
        Self {
            address,
            name: None,
            host: host.to_owned(),
            path: path.to_owned(),
            headers: HeaderMap::new(),
            clients: 1,
            fresh: false,
            rate: None,
            limit: Duration::from_secs(10),
            count_by: None,
        }
    }
}

/// Sends `load` until it is over. A request is good when its answer is whole and its
/// status is below 400.
pub async fn run(load: &Load, until: &Until) -> Report {
    let clients = 0..load.clients.max(1);
    all(clients.map(|index| client(load.clone(), until.clone(), index))).await
}

async fn client(load: Load, until: Until, index: usize) -> Tally {
    let mut tally = Tally::new();
    let mut kept = None;
    let every = load.rate.map(|rate| {
        let clients = u32::try_from(load.clients.max(1)).unwrap_or(u32::MAX);
        Duration::from_secs(1) * clients / rate.max(1)
    });
    // Clients start spread over one period, so that a rate is even from the start.
    let offset = every.map_or(Duration::ZERO, |every| {
        every * u32::try_from(index).unwrap_or(0) / u32::try_from(load.clients.max(1)).unwrap_or(1)
    });
    let mut due = Instant::now() + offset;
    while !until.over() {
        let mut begun = Instant::now();
        if let Some(every) = every {
            tokio::time::sleep_until(due.into()).await;
            begun = due;
            due += every;
        }
        match tokio::time::timeout(load.limit, once(&load, &mut kept)).await {
            Ok(Ok((answer, bytes))) => tally.good(begun.elapsed(), bytes, &answer),
            Ok(Err(cause)) => {
                kept = None;
                tally.failed(&cause);
            }
            Err(_) => {
                kept = None;
                tally.failed("no answer in time");
            }
        }
        if load.fresh {
            kept = None;
        }
    }
    tally
}

type Sender = SendRequest<Empty<Bytes>>;

async fn connect(load: &Load) -> Result<Sender, String> {
    let address = match &load.name {
        Some(name) => tokio::net::lookup_host(name)
            .await
            .map_err(|cause| format!("look up: {cause}"))?
            .next()
            .ok_or_else(|| "name has no address".to_owned())?,
        None => load.address,
    };
    let stream =
        TcpStream::connect(address).await.map_err(|cause| format!("connect: {}", cause.kind()))?;
    drop(stream.set_nodelay(true));
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| "handshake".to_owned())?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// One request; gives what to count the answer by, and the bytes of its body.
async fn once(load: &Load, kept: &mut Option<Sender>) -> Result<(String, u64), String> {
    let mut sender = match kept.take() {
        // Between two requests the peer may say that it will close: that is no failure.
        Some(mut sender) => match sender.ready().await {
            Ok(()) => sender,
            Err(_) => connect(load).await?,
        },
        None => connect(load).await?,
    };
    let mut request = Request::get(&load.path)
        .header(http::header::HOST, &load.host)
        .body(Empty::new())
        .map_err(|_| "request is not legal".to_owned())?;
    request.headers_mut().extend(load.headers.clone());
    let response = sender.send_request(request).await.map_err(|cause| kind(&cause))?;
    let status = response.status();
    let answer = match load.count_by.as_deref() {
        Some(field) => response
            .headers()
            .get(field)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("(none)")
            .to_owned(),
        None => status.as_str().to_owned(),
    };
    let body = response.into_body().collect().await.map_err(|_| "body broke".to_owned())?;
    if status.as_u16() >= 400 {
        *kept = Some(sender);
        return Err(format!("status {}", status.as_u16()));
    }
    *kept = Some(sender);
    Ok((answer, u64::try_from(body.to_bytes().len()).unwrap_or(0)))
}

fn kind(cause: &hyper::Error) -> String {
    if cause.is_incomplete_message() {
        "closed before the answer".to_owned()
    } else if cause.is_canceled() {
        "closed before the request".to_owned()
    } else {
        "exchange broke".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_request_is_counted_once_and_by_its_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(super::super::serve::http(listener, "one".into(), 10));
        for fresh in [false, true] {
            let mut load = Load::get(address, "test", "/");
            load.clients = 2;
            load.fresh = fresh;
            load.rate = Some(400);
            load.count_by = Some("x-served-by".into());
            let report = run(&load, &Until::after(Duration::from_millis(200))).await;
            assert_eq!(report.failures(), 0, "{report:?}");
            assert!(report.good > 20 && report.good == report.answers["one"], "{report:?}");
            assert_eq!(report.bytes, report.good * 10);
        }
    }

    #[tokio::test]
    async fn a_dead_server_is_a_counted_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut load = Load::get(listener.local_addr().unwrap(), "test", "/");
        load.rate = Some(100);
        drop(listener);
        let report = run(&load, &Until::after(Duration::from_millis(50))).await;
        assert!(report.good == 0 && report.failures() == report.sent && report.sent > 0);
    }
}
