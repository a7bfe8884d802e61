//! What names and addresses look like, for the OpenAPI document. Pure.
//!
//! That `all` is no name is left to who reads it.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

use crate::{MacAddr, NodeName};

/// What [`NodeName`] reads: an RFC 1123 subdomain.
pub const NAME: &str = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$";
/// What [`MacAddr`] reads. Not all zero, and no multicast address: the second digit is even.
pub const MAC: &str = r"^(?![0:.-]*$)[0-9A-Fa-f][02468ACEace]((:[0-9A-Fa-f]{2}){5}|(-[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(\.[0-9A-Fa-f]{4}){2}|[0-9A-Fa-f]{10})$";

impl PartialSchema for NodeName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(253))
            .pattern(Some(NAME))
            .into()
    }
}

impl ToSchema for NodeName {}

impl PartialSchema for MacAddr {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).pattern(Some(MAC)).into()
    }
}

impl ToSchema for MacAddr {}
