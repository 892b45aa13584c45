//! The reflection service, in its versions v1 and v1alpha. That of tonic ends the stream at the
//! first symbol that it does not know, where gRPC asks for an answer with the error: clients such
//! as grpcurl go on with other symbols on the same stream.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tonic::Code;

/// What is known of the API: its files, by their names and by the symbols in them.
#[derive(Clone, Debug)]
pub struct Reflection(Arc<Index>);

#[derive(Debug, Default)]
struct Index {
    services: Vec<String>,
    /// Encoded `FileDescriptorProto`s.
    files: BTreeMap<String, Vec<u8>>,
    /// The file of each symbol.
    symbols: HashMap<String, String>,
}

/// An answer, before it has the types of a version.
enum Answer {
    File(Vec<u8>),
    Services(Vec<String>),
    /// The type is known, and has no extensions.
    NoExtensions(String),
    Error(Code, String),
}

impl Reflection {
    /// The API in these encoded `FileDescriptorSet`s.
    ///
    /// # Errors
    ///
    /// One of them does not decode.
    pub fn new(sets: &[&[u8]]) -> Result<Reflection, prost::DecodeError> {
        let mut index = Index::default();
        for set in sets {
            for file in FileDescriptorSet::decode(*set)?.file {
                index.add(&file);
            }
        }
        Ok(Reflection(Arc::new(index)))
    }

    fn by_name(&self, name: &str) -> Answer {
        let file = self.0.files.get(name).cloned();
        file.map_or_else(|| not_found("file", name), Answer::File)
    }

    fn by_symbol(&self, symbol: &str) -> Answer {
        match self.0.symbols.get(symbol) {
            Some(file) => self.by_name(file),
            None => not_found("symbol", symbol),
        }
    }

    /// grpcurl takes an error here for one of the type itself.
    fn extensions_of(&self, name: &str) -> Answer {
        if self.0.symbols.contains_key(name) {
            Answer::NoExtensions(name.to_owned())
        } else {
            not_found("type", name)
        }
    }
}

fn not_found(what: &str, name: &str) -> Answer {
    let name: String = name.chars().take(200).collect();
    Answer::Error(Code::NotFound, format!("{what} {name:?} is not known here"))
}

impl Index {
    fn add(&mut self, file: &FileDescriptorProto) {
        let package = file.package();
        let name = file.name().to_owned();
        if self.files.insert(name.clone(), file.encode_to_vec()).is_some() {
            return;
        }
        for message in &file.message_type {
            self.message(&name, package, message);
        }
        for one in &file.enum_type {
            self.enumeration(&name, package, one);
        }
        for extension in &file.extension {
            self.symbol(&name, package, extension.name());
        }
        for service in &file.service {
            let service_name = self.symbol(&name, package, service.name());
            for method in &service.method {
                self.symbol(&name, &service_name, method.name());
            }
            self.services.push(service_name);
        }
    }

    fn message(&mut self, file: &str, scope: &str, message: &DescriptorProto) {
        let scope = self.symbol(file, scope, message.name());
        for nested in &message.nested_type {
            self.message(file, &scope, nested);
        }
        for one in &message.enum_type {
            self.enumeration(file, &scope, one);
        }
        let fields = message
            .field
            .iter()
            .chain(&message.extension)
            .map(prost_types::FieldDescriptorProto::name);
        for name in
            fields.chain(message.oneof_decl.iter().map(prost_types::OneofDescriptorProto::name))
        {
            self.symbol(file, &scope, name);
        }
    }

    fn enumeration(&mut self, file: &str, scope: &str, one: &EnumDescriptorProto) {
        self.symbol(file, scope, one.name());
        // A value belongs to the scope around its enum.
        for value in &one.value {
            self.symbol(file, scope, value.name());
        }
    }

    /// Adds a symbol; returns its full name.
    fn symbol(&mut self, file: &str, scope: &str, name: &str) -> String {
        let full = if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        self.symbols.insert(full.clone(), file.to_owned());
        full
    }
}

/// The service in one version. Their messages are the same but for their packages.
macro_rules! version {
    ($version:ident) => {
        /// The service in this version.
        pub mod $version {
            use futures_util::{StreamExt, stream::BoxStream};
            use tonic::{Request, Response, Status, Streaming};
            use tonic_reflection::pb::$version::{
                ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse,
                ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
                ServiceResponse,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
                server_reflection_server::{ServerReflection, ServerReflectionServer},
            };

            use super::{Answer, Code, Reflection};

            /// A server of this version.
            pub fn server(reflection: Reflection) -> ServerReflectionServer<Reflection> {
                ServerReflectionServer::new(reflection)
            }

            #[tonic::async_trait]
            impl ServerReflection for Reflection {
                type ServerReflectionInfoStream =
                    BoxStream<'static, Result<ServerReflectionResponse, Status>>;

                async fn server_reflection_info(
                    &self,
                    requests: Request<Streaming<ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let reflection = self.clone();
                    let answers =
                        requests.into_inner().map(move |request| Ok(answer(&reflection, request?)));
                    Ok(Response::new(answers.boxed()))
                }
            }

            fn answer(
                reflection: &Reflection,
                request: ServerReflectionRequest,
            ) -> ServerReflectionResponse {
                let answer = match &request.message_request {
                    Some(MessageRequest::FileByFilename(name)) => reflection.by_name(name),
                    Some(MessageRequest::FileContainingSymbol(name)) => reflection.by_symbol(name),
                    Some(MessageRequest::ListServices(_)) => {
                        Answer::Services(reflection.0.services.clone())
                    }
                    Some(MessageRequest::FileContainingExtension(_)) => {
                        Answer::Error(Code::NotFound, "there are no extensions here".into())
                    }
                    Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                        reflection.extensions_of(name)
                    }
                    None => Answer::Error(Code::InvalidArgument, "nothing is asked for".into()),
                };
                let message = match answer {
                    Answer::File(file) => {
                        let file_descriptor_proto = vec![file];
                        MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                            file_descriptor_proto,
                        })
                    }
                    Answer::Services(names) => {
                        let service =
                            names.into_iter().map(|name| ServiceResponse { name }).collect();
                        MessageResponse::ListServicesResponse(ListServiceResponse { service })
                    }
                    Answer::NoExtensions(base_type_name) => {
                        let numbers =
                            ExtensionNumberResponse { base_type_name, ..Default::default() };
                        MessageResponse::AllExtensionNumbersResponse(numbers)
                    }
                    Answer::Error(code, error_message) => {
                        let error_code = code as i32;
                        MessageResponse::ErrorResponse(ErrorResponse { error_code, error_message })
                    }
                };
                ServerReflectionResponse {
                    valid_host: request.host.clone(),
                    original_request: Some(request),
                    message_response: Some(message),
                }
            }
        }
    };
}

version!(v1);
version!(v1alpha);
