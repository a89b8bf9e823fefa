//! Requests and answers as HTTP.

use crate::answer::{RowAnswer, whole};
use crate::error::{ApiError, Result, json_response};
use crate::queue::{Job, Queue, Reply, What};
use crate::request::{self, Asked};
use crate::served::Served;
use crate::stream::EventStream;
use crate::{Limits, Stop};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use axum::http::{Method, Response, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep_until, timeout, timeout_at};

/// What every request is answered from.
pub(crate) struct App {
    pub(crate) served: Arc<Served>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) api_key: Option<String>,
    pub(crate) limits: Limits,
}

/// Speaks HTTP until it is stopped and all that was asked is answered, or has had its time.
pub(crate) async fn speak(app: App, listener: TcpListener, stop: &Stop) -> std::io::Result<()> {
    let (time, queue) = (app.limits.time, app.queue.clone());
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopped = stop.clone();
    let serving = axum::serve(listener, router(app))
        .with_graceful_shutdown(async move { stopped.stopped().await });
    let too_late = async {
        stop.stopped().await;
        queue.hurry();
        // A client that never sends the end of its request must not hold the server.
        tokio::time::sleep(time).await;
    };
    tokio::select! {
        served = serving.into_future() => served,
        () = too_late => Ok(()),
    }
}

fn router(app: App) -> Router {
    let app = Arc::new(app);
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(app.clone(), check_key))
        .with_state(app)
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    let Some(key) = &app.api_key else {
        return next.run(request).await;
    };
    let given = request.headers().get(AUTHORIZATION);
    let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let message = match given {
        _ if request.uri().path() == "/health" => return next.run(request).await,
        Some(given) if is_same(given, key.as_bytes()) => return next.run(request).await,
        Some(_) => "the API key is not the one that this server was started with",
        None => "no API key; send the header `Authorization: Bearer KEY`",
    };
    let error = ApiError::new(StatusCode::UNAUTHORIZED, message);
    error.with_code("invalid_api_key").into_response()
}

/// Whether both are equal, in a time that does not tell where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differs = |(a, b): (&u8, &u8)| a ^ b;
    a.len() == b.len() && a.iter().zip(b).map(differs).fold(0, |all, one| all | one) == 0
}

async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let (waiting, running) = app.queue.counts();
    let health = json!({
        "status": "ok",
        "model": app.served.name,
        "waiting": waiting,
        "running": running,
    });
    json_response(StatusCode::OK, &health)
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    let models: Vec<Value> = app
        .served
        .names()
        .map(|name| described(&app, &name))
        .collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": models}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response<Body>> {
    app.served.strategy(&name)?;
    Ok(json_response(StatusCode::OK, &described(&app, &name)))
}

fn described(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "skipbench",
        "n_layers": app.served.n_layers(),
        "max_model_len": app.served.model.sizes().max_positions,
    })
}

async fn no_such_path(uri: Uri) -> ApiError {
    let message = format!(
        "there is no `{}`; this server has /v1/completions, /v1/chat/completions, /v1/models and /health",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, message)
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("`{}` does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response<Body>> {
    answer(app, request, request::completion).await
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response<Body>> {
    answer(app, request, request::chat).await
}

/// What reads a body.
type Read = fn(&Served, &Limits, &[u8]) -> Result<Asked>;

async fn answer(app: Arc<App>, request: Request, read: Read) -> Result<Response<Body>> {
    let deadline = tokio::time::Instant::now() + app.limits.time;
    let seconds = app.limits.time.as_secs();
    let body = timeout(app.limits.time, body_of(request, app.limits.body_bytes));
    let body = body.await.map_err(|_| ApiError::late(seconds))??;
    let reader = app.clone();
    let asked = tokio::task::spawn_blocking(move || read(&reader.served, &reader.limits, &body));
    let asked = asked.await.map_err(|_| ApiError::stopped())??;
    let replies = ask(&app, &asked)?;
    if asked.stream.is_some() {
        let deadline = (Box::pin(sleep_until(deadline)), seconds);
        let stream = EventStream::new(app.served.clone(), asked, replies, deadline);
        let mut response = Response::new(Body::new(stream));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        return Ok(response);
    }
    let rows = timeout_at(deadline, gather(replies, asked.rows.len())).await;
    let rows = rows.map_err(|_| ApiError::late(seconds))??;
    let value = whole(&app.served, &asked, &rows)?;
    Ok(json_response(StatusCode::OK, &value))
}

async fn body_of(request: Request, most: usize) -> Result<Bytes> {
    let too_large = || {
        let message = format!("the body has more than the {most} bytes that one may have");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("request_too_large")
    };
    // Refused before it is sent, where the client says how long it is.
    let said = request.headers().get(CONTENT_LENGTH);
    let said = said.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|bytes| bytes > most as u64) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => {
            let message = format!("the body could not be read: {error}");
            Err(ApiError::new(StatusCode::BAD_REQUEST, message))
        }
    }
}

/// Queues the rows of a request.
fn ask(app: &App, asked: &Asked) -> Result<UnboundedReceiver<Reply>> {
    let (replies, heard) = unbounded_channel();
    let arrived = Instant::now();
    let rows = asked.rows.iter().enumerate();
    let jobs = rows.map(|(index, row)| Job {
        kind: row.kind.clone(),
        spec: asked.spec.clone(),
        prompt: row.prompt.clone(),
        options: row.options.clone(),
        scored: row.scored.clone(),
        streams: asked.stream.is_some(),
        arrived,
        row: index,
        replies: replies.clone(),
    });
    app.queue.push(jobs.collect())?;
    Ok(heard)
}

/// Everything that comes of a request's rows.
async fn gather(mut replies: UnboundedReceiver<Reply>, rows: usize) -> Result<Vec<RowAnswer>> {
    let mut answers: Vec<RowAnswer> = (0..rows).map(|_| RowAnswer::default()).collect();
    let mut open = rows;
    while open > 0 {
        let Some(Reply { row, what }) = replies.recv().await else {
            return Err(ApiError::stopped());
        };
        match what {
            What::Scored(likelihood) => answers[row].scored = Some(likelihood),
            What::Token(..) => {}
            What::Failed(error) => return Err(error),
            What::Done(output) => {
                answers[row].output = output;
                open -= 1;
            }
        }
    }
    Ok(answers)
}
