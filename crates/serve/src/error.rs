//! What a client is told when something is wrong, in OpenAI's form.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use skipbench_engine::EngineError;
use skipbench_model::ModelError;

/// An error of a request: what was wrong, where in the request, and what to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field of the request that is wrong.
    pub(crate) param: Option<String>,
    /// A word for programs.
    pub(crate) code: Option<&'static str>,
}

pub(crate) type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
        }
    }

    /// A field that is not as it should be.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// More tokens than fit.
    pub(crate) fn too_long(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::field(param, message).with_code("context_length_exceeded")
    }

    /// A request that has waited or run too long.
    pub(crate) fn late(seconds: u64) -> Self {
        let message = format!(
            "the request took longer than the {seconds} s that one may take; ask for fewer tokens, or start the server with a longer `--timeout`"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("timeout")
    }

    /// A server that is at its end.
    pub(crate) fn stopped() -> Self {
        let message = "the server stopped before the answer was complete";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("stopped")
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// `{"error": {...}}`.
    pub(crate) fn json(&self) -> Value {
        let kind = match self.status.is_server_error() {
            true => "server_error",
            false => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// What went wrong while the model ran.
impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let status = match error {
            EngineError::NoFixedLayers => {
                let message = "the strategy's layers are not the same at every token, so it has none of its own for a pass over the whole text; say in `context_tokens` how many tokens stand in front of those that count as decoded";
                return Self::field("context_tokens", message);
            }
            EngineError::Strategy(_) | EngineError::Search { .. } => StatusCode::BAD_REQUEST,
            EngineError::Model(ModelError::NoMemory { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.json());
        let headers = response.headers_mut();
        if self.code == Some("overloaded") {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        } else if self.status.is_server_error() {
            // What failed once fails again: OpenAI's client would ask twice more.
            let name = HeaderName::from_static("x-should-retry");
            headers.insert(name, HeaderValue::from_static("false"));
        }
        response
    }
}

/// What a tokenizer refuses of the model's own tokens.
impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        EngineError::from(error).into()
    }
}

/// A JSON value as an answer.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
