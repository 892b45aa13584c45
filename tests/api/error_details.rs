//! The details of an error (AIP-193).

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// An error with its details taken apart.
#[derive(Debug)]
pub struct ErrorDetails {
    /// For people.
    pub message: String,
    /// `ErrorInfo.metadata`.
    pub metadata: HashMap<String, String>,
    /// `RetryInfo`.
    pub retry: Option<Duration>,
    /// `BadRequest`: field and description of each violation.
    pub violations: Vec<(String, String)>,
    /// `QuotaFailure`: the subjects.
    pub quotas: Vec<String>,
}

/// Takes an error apart that must have this code, and this reason in the domain `trunkline`.
pub fn error_details(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!status.message().is_empty(), "an error says something to people");
    let details = status.check_error_details().expect("details that can be read");
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("trunkline", reason), "{status:?}");
    let violations = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
    let quotas = details.quota_failure().map(|quota| &quota.violations[..]).unwrap_or_default();
    ErrorDetails {
        message: status.message().to_owned(),
        metadata: info.metadata.clone(),
        retry: details.retry_info().and_then(|retry| retry.retry_delay),
        violations: violations
            .iter()
            .map(|violation| (violation.field.clone(), violation.description.clone()))
            .collect(),
        quotas: quotas.iter().map(|quota| quota.subject.clone()).collect(),
    }
}

/// The fields that the error of an invalid request names, in order. Such a request is not retried.
pub fn wrong_fields(status: &Status) -> Vec<String> {
    let error_details = error_details(status, Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(error_details.retry, None, "the same request stays wrong");
    assert_eq!(error_details.metadata["violations"], error_details.violations.len().to_string());
    for (field, description) in &error_details.violations {
        assert!(
            error_details.message.contains(field) || error_details.message.ends_with("..."),
            "{error_details:?}"
        );
        assert!(!description.is_empty(), "{error_details:?}");
    }
    error_details.violations.into_iter().map(|(field, _)| field).collect()
}
