//! What any operation may answer, added to the API's description in one place; a handler lists what is its own.

use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, ResponseBuilder};

/// Of an operation that asks who one is.
const WITH_KEY: [(&str, &str); 1] = [("401", "Who asks is not known")];
/// Of one that reads a body.
const WITH_BODY: [(&str, &str); 4] = [
    ("400", "The body cannot be read"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON"),
    ("422", "A field is not valid"),
];

/// Adds them to all operations.
pub fn complete(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            if operation.security.is_some() {
                add(operation, &WITH_KEY);
            }
            if operation.request_body.is_some() {
                add(operation, &WITH_BODY);
            }
        }
    }
}

fn add(operation: &mut Operation, problems: &[(&str, &str)]) {
    for (status, description) in problems {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(*description).content("application/problem+json", body);
        operation.responses.responses.entry((*status).to_owned()).or_insert_with(|| response.into());
    }
}
