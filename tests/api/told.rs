//! What an error tells a client (AIP-193).

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// An error with its details taken apart.
#[derive(Debug)]
pub struct Told {
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
pub fn told(status: &Status, code: Code, reason: &str) -> Told {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!status.message().is_empty(), "an error says something to people");
    let details = status.check_error_details().expect("details that can be read");
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("trunkline", reason), "{status:?}");
    let violations = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
    let quotas = details.quota_failure().map(|quota| &quota.violations[..]).unwrap_or_default();
    Told {
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

/// The fields that a refused request names, in order. An error that blames the request is not one to retry.
pub fn wrong_fields(status: &Status) -> Vec<String> {
    let told = told(status, Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(told.retry, None, "the same request stays wrong");
    assert_eq!(told.metadata["violations"], told.violations.len().to_string());
    for (field, description) in &told.violations {
        assert!(told.message.contains(field) || told.message.ends_with("..."), "{told:?}");
        assert!(!description.is_empty(), "{told:?}");
    }
    told.violations.into_iter().map(|(field, _)| field).collect()
}
