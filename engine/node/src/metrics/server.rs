//! The HTTP address that metrics are read from, on a thread of its own.
//! It must never hold a node up: what a visitor may send, how long, and how many there may be is bounded.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use super::Source;

/// Visitors at a time. One more is turned away.
const MAX_CONNECTIONS: usize = 16;

/// The most bytes of a request's head, and of what is buffered of an answer.
const MAX_BUFFER_BYTES: usize = 16 << 10;

/// Header lines of a request.
const MAX_HEADERS: usize = 64;

/// How long a visitor may take to ask, and how long for all of it.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// The pause after the system could not give a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running server. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address` and shows what `source` says to whoever asks.
    pub(crate) fn start(address: SocketAddr, source: Source) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let name = format!("{}-metrics", source.shared.node);
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    // The sender is dropped or used: both mean the end.
                    _ = stopped => {}
                    result = accept(listener, Arc::new(source)) => {
                        if let Err(error) = result {
                            tracing::error!(%error, "metrics are not served");
                        }
                    }
                }
            });
        };
        let thread = std::thread::Builder::new().name(name).spawn(serve)?;
        Ok(Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens, with the port that the system chose if it was 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics server panicked");
        }
    }
}

async fn accept(listener: TcpListener, source: Arc<Source>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, or a visitor that is gone already: the next may fare better.
                tracing::warn!(%error, "a visitor of the metrics was not let in");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let source = Arc::clone(&source);
            tokio::spawn(async move {
                serve(stream, &source).await;
                drop(place);
            });
        }
    }
}

/// One question and its answer.
async fn serve(stream: TcpStream, source: &Source) {
    let answered = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .max_buf_size(MAX_BUFFER_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(async |request| Ok::<_, Infallible>(answer(&request, source))),
        );
    match tokio::time::timeout(CONNECTION_LIMIT, answered).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a visitor of the metrics asked badly"),
        Err(_) => tracing::debug!("a visitor of the metrics took too long"),
    }
}

fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let plain = (CONTENT_TYPE, "text/plain; charset=utf-8");
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => response(
            StatusCode::OK,
            (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"),
            source.render(),
        ),
        (_, "/metrics") => response(
            StatusCode::METHOD_NOT_ALLOWED,
            (ALLOW, "GET, HEAD"),
            String::new(),
        ),
        _ => response(
            StatusCode::NOT_FOUND,
            plain,
            "metrics are at /metrics\n".to_owned(),
        ),
    }
}

fn response(
    status: StatusCode,
    (header, value): (HeaderName, &'static str),
    body: String,
) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header(header, value);
    response
        .body(Full::new(Bytes::from(body)))
        .expect("these headers are valid")
}
