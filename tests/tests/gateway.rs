// SPDX-License-Identifier: Apache-2.0

//! A gateway in this process, real connections on both sides.

mod gateway {
    mod affinity;
    mod edge;
    mod edge_policy;
    mod failure;
    mod stream;
    mod tls;
    mod tokens;
    mod waypoint;

    use std::net::{IpAddr, SocketAddr};
    use std::sync::Arc;

    use anyhow::Context as _;
    use bytes::Bytes;
    use http::{Request, Response, StatusCode};
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use policy::authz::{Action, Authorization, Clause, Field, Match, PolicyName, Rule, Scope};
    use routing::delta::Resource;
    use tokio::io::{AsyncRead, AsyncWrite};
    use tokio::net::TcpStream;
    use waymark_tests::backend::{Backend, Seen};
    use waymark_tests::mesh::{Mesh, address, rule, to};

    /// A backend on an address of its own.
    async fn backend(name: &str) -> anyhow::Result<Backend> {
        Backend::start(name, SocketAddr::new(address(), 0), None).await
    }

    /// A route of everything at the listener `section` to the service `web`.
    fn all_to_web(mesh: &mut Mesh, section: &str) -> anyhow::Result<()> {
        let rule = rule("HTTPRoute/shop/web", &[section], vec![to("web", 1)?])?;
        mesh.put([Resource::Rule(Arc::new(rule))]);
        Ok(())
    }

    /// What came back.
    #[derive(Debug)]
    struct Got {
        status: StatusCode,
        head: http::response::Parts,
        body: Bytes,
    }

    impl Got {
        /// What the backend saw.
        fn seen(&self) -> anyhow::Result<Seen> {
            let text = || format!("{}: {:?}", self.status, self.body);
            serde_json::from_slice(&self.body).with_context(text)
        }
    }

    async fn got<B>(response: Response<B>) -> anyhow::Result<Got>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Got { status: head.status, head, body })
    }

    /// One HTTP/1.1 request on a stream of its own.
    async fn http1<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<Got>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        got(send.send_request(request).await?).await
    }

    /// A client of HTTP/2 on `stream`.
    async fn http2<S>(
        stream: S,
    ) -> anyhow::Result<hyper::client::conn::http2::SendRequest<Full<Bytes>>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(send)
    }

    /// A policy of namespace `shop` with one match.
    fn policy(name: &str, action: Action, one: Match) -> Authorization {
        Authorization {
            name: PolicyName::new("shop", name),
            scope: Scope::Selector,
            action,
            dry_run: false,
            unsupported: None,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![one] }] }],
        }
    }

    /// A field that wants this value.
    fn any<T>(value: T) -> Field<T> {
        Field { any: vec![value], not: Vec::new() }
    }

    /// A request for `http://HOST/PATH`, to be changed.
    fn get(host: &str, path: &str) -> http::request::Builder {
        Request::builder().uri(path).header("host", host)
    }

    /// `GET` over a new connection to the gateway.
    async fn ask(ip: IpAddr, port: u16, host: &str, path: &str) -> anyhow::Result<Got> {
        let request = get(host, path).body(Full::default())?;
        http1(TcpStream::connect((ip, port)).await?, request).await
    }
}
