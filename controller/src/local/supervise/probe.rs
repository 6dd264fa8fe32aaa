// SPDX-License-Identifier: Apache-2.0

//! Probes of containers, sent from the node's namespace as a kubelet sends them.
//!
//! Owns: one thread per node that lives in the node's network namespace and makes all
//! connections of its probes; HTTP, TCP, gRPC health and exec probes.
//!
//! Rule: `Probe` of `core/v1`; HTTP counts 200 to 399 as success.
//!
//! Start at [`Prober::new`] and [`Prober::probe`].

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::process;
use crate::local::netns;
use crate::local::paths;

/// What one probe does.
#[derive(Clone, Debug)]
pub(super) enum Check {
    /// A GET that must answer 200 to 399.
    Http {
        /// Where to.
        to: SocketAddr,
        /// Path and query.
        path: String,
        /// Headers, `host` among them if given.
        headers: Vec<(String, String)>,
    },
    /// A connection that must open.
    Tcp(SocketAddr),
    /// `grpc.health.v1.Health/Check` that must answer SERVING.
    Grpc(SocketAddr, String),
    /// A command that must end well.
    Exec(Vec<String>),
}

/// A probe with its times.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What to do.
    pub(super) check: Check,
    /// Wait before the first.
    pub(super) delay: Duration,
    /// From one to the next.
    pub(super) period: Duration,
    /// Longest wait for an answer.
    pub(super) timeout: Duration,
    /// Successes in a row that mean well.
    pub(super) successes: u32,
    /// Failures in a row that mean ill.
    pub(super) failures: u32,
}

impl Plan {
    /// The plan of `probe` for `container` at `address`; none if it names nothing to do.
    pub(super) fn of(probe: &Probe, container: &Container, address: IpAddr) -> Option<Self> {
        let seconds = |value: Option<i32>, default: u64| {
            let value = value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default);
            Duration::from_secs(value)
        };
        let times = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).max(1)
        };
        Some(Self {
            check: check(probe, container, address)?,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: times(probe.success_threshold, 1),
            failures: times(probe.failure_threshold, 3),
        })
    }
}

fn check(probe: &Probe, container: &Container, address: IpAddr) -> Option<Check> {
    let place = |host: Option<&str>, port: &IntOrString| {
        let ip = host.and_then(|host| host.parse().ok()).unwrap_or(address);
        Some(SocketAddr::new(ip, port_number(port, container)?))
    };
    if let Some(http) = &probe.http_get {
        let headers = http.http_headers.iter().flatten();
        return Some(Check::Http {
            to: place(http.host.as_deref(), &http.port)?,
            path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
            headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
        });
    }
    if let Some(tcp) = &probe.tcp_socket {
        return place(tcp.host.as_deref(), &tcp.port).map(Check::Tcp);
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).ok()?;
        return Some(Check::Grpc(
            SocketAddr::new(address, port),
            grpc.service.clone().unwrap_or_default(),
        ));
    }
    probe.exec.as_ref().map(|exec| Check::Exec(exec.command.clone().unwrap_or_default()))
}

/// A port by number, or by name among those of the container.
fn port_number(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let named = |port: &&k8s_openapi::api::core::v1::ContainerPort| {
                port.name.as_deref() == Some(name)
            };
            let port = container.ports.iter().flatten().find(named)?;
            u16::try_from(port.container_port).ok()
        }
    }
}

/// Sends probes from one node.
#[derive(Clone, Debug)]
pub(super) struct Prober {
    runtime: Handle,
}

impl Prober {
    /// Makes the thread of `node`; it lives as long as the process.
    ///
    /// # Errors
    ///
    /// Those of entering the node's namespace and of making a runtime there.
    pub(super) fn new(node: &str) -> std::io::Result<Self> {
        let path = paths::netns(node);
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let made = netns::join(&path)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
            match made {
                Ok(runtime) => {
                    // Nobody to tell means nobody to work for.
                    if tell.send(Ok(runtime.handle().clone())).is_ok() {
                        runtime.block_on(std::future::pending::<()>());
                    }
                }
                Err(cause) => drop(tell.send(Err(cause))),
            }
        });
        let runtime = told.recv().map_err(std::io::Error::other)??;
        Ok(Self { runtime })
    }

    /// Does one check of the container whose process is `pid`; true if it is well.
    pub(super) async fn probe(&self, plan: &Plan, pid: i32) -> bool {
        let limit = plan.timeout;
        let sent = match plan.check.clone() {
            Check::Exec(command) => return process::run_inside(pid, &command, limit).await,
            Check::Tcp(to) => self.runtime.spawn(tokio::time::timeout(limit, async move {
                TcpStream::connect(to).await.map(|_open| true).map_err(|_cause| ())
            })),
            Check::Http { to, path, headers } => {
                self.runtime.spawn(tokio::time::timeout(limit, http(to, path, headers)))
            }
            Check::Grpc(to, service) => {
                self.runtime.spawn(tokio::time::timeout(limit, grpc(to, service)))
            }
        };
        matches!(sent.await, Ok(Ok(Ok(true))))
    }
}

async fn http(to: SocketAddr, path: String, headers: Vec<(String, String)>) -> Result<bool, ()> {
    let stream = TcpStream::connect(to).await.map_err(|_cause| ())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_cause| ())?;
    let connection = tokio::spawn(connection);
    let mut request =
        http::Request::get(path).header("user-agent", "kube-probe/1.34").header("accept", "*/*");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", to.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_cause| ())?;
    let answered = sender.send_request(request).await;
    connection.abort();
    let status = answered.map_err(|_cause| ())?.status().as_u16();
    Ok((200..400).contains(&status))
}

async fn grpc(to: SocketAddr, service: String) -> Result<bool, ()> {
    let stream = TcpStream::connect(to).await.map_err(|_cause| ())?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|_cause| ())?;
    let connection = tokio::spawn(connection);
    let length = u8::try_from(service.len()).map_err(|_cause| ())?;
    // HealthCheckRequest { service = 1 } as protobuf, behind gRPC's five bytes of length.
    let mut message = if service.is_empty() {
        Vec::new()
    } else {
        [&[0x0a, length], service.as_bytes()].concat()
    };
    let size = u8::try_from(message.len()).map_err(|_cause| ())?;
    message.splice(0..0, [0, 0, 0, 0, size]);
    let request = http::Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(message)))
        .map_err(|_cause| ())?;
    let answered = sender.send_request(request).await;
    let body = match answered {
        Ok(response) => response.into_body().collect().await.map_err(|_cause| ())?.to_bytes(),
        Err(_) => Bytes::new(),
    };
    connection.abort();
    // HealthCheckResponse { status = 1: SERVING }.
    Ok(body.get(5..) == Some(&[0x08, 0x01]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_finds_its_place_and_times() {
        let container: Container = serde_json::from_str(
            r#"{"name": "c", "ports": [{"name": "web", "containerPort": 8081}]}"#,
        )
        .unwrap();
        let address: IpAddr = "10.244.1.2".parse().unwrap();
        let cases = [
            (r#"{"httpGet": {"path": "/h", "port": 80}}"#, Some("10.244.1.2:80")),
            (r#"{"httpGet": {"port": "web"}}"#, Some("10.244.1.2:8081")),
            (r#"{"httpGet": {"port": "none"}}"#, None),
            (r#"{"tcpSocket": {"host": "10.0.0.9", "port": 1}}"#, Some("10.0.0.9:1")),
            (r#"{"grpc": {"port": 9}}"#, Some("10.244.1.2:9")),
            (r#"{}"#, None),
        ];
        for (text, want) in cases {
            let probe: Probe = serde_json::from_str(text).unwrap();
            let to = Plan::of(&probe, &container, address).map(|plan| match plan.check {
                Check::Http { to, .. } | Check::Tcp(to) | Check::Grpc(to, _) => to.to_string(),
                Check::Exec(command) => command.join(" "),
            });
            assert_eq!(to.as_deref(), want, "{text}");
        }
        let probe: Probe =
            serde_json::from_str(r#"{"tcpSocket": {"port": 1}, "failureThreshold": 5}"#).unwrap();
        let plan = Plan::of(&probe, &container, address).unwrap();
        assert_eq!(
            (plan.period, plan.timeout, plan.failures),
            (Duration::from_secs(10), Duration::from_secs(1), 5)
        );
    }
}
