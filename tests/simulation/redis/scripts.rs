//! Scripts, executed by Lua 5.1 with `redis.call` and `redis.pcall`, and the conversions that Redis
//! documents.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use mlua::{Function, Lua, MultiValue, Table, Value, Variadic};

use super::{
    Reply, Server, Text, command,
    reply::error::{self, NO_SCRIPT},
};

/// Scripts that a thread keeps compiled.
const MAX_COMPILED: usize = 64;

pub fn script(server: &mut Server, args: &[Text]) -> Result<Reply, String> {
    match args {
        [_, what, code] if what.eq_ignore_ascii_case(b"LOAD") => {
            let sha = load(server, code);
            Ok(Reply::Bulk(sha))
        }
        [_, what] if what.eq_ignore_ascii_case(b"FLUSH") => {
            server.scripts = Arc::default();
            Ok(Reply::ok())
        }
        _ => Err(error::SYNTAX.into()),
    }
}

pub fn eval(server: &mut Server, args: &[Text]) -> Result<Reply, String> {
    let [_, code, rest @ ..] = args else { return Err(error::arguments(args)) };
    let sha = load(server, code);
    let code = server.scripts[&sha].clone();
    run(server, &sha, &code, rest)
}

pub fn eval_sha(server: &mut Server, args: &[Text]) -> Result<Reply, String> {
    let [_, sha, rest @ ..] = args else { return Err(error::arguments(args)) };
    let sha = sha.to_ascii_lowercase();
    let code = server.scripts.get(&sha[..]).cloned().ok_or(NO_SCRIPT)?;
    run(server, &sha, &code, rest)
}

fn load(server: &mut Server, code: &[u8]) -> Text {
    let code = String::from_utf8_lossy(code);
    let sha: Text = ::redis::Script::new(&code).get_hash().as_bytes().into();
    Arc::make_mut(&mut server.scripts).insert(sha.clone(), (*code).into());
    sha
}

/// Runs a script: `args` are the number of keys, the keys, and the rest.
fn run(server: &mut Server, sha: &[u8], code: &str, args: &[Text]) -> Result<Reply, String> {
    let [keys, rest @ ..] = args else { return Err(error::arguments(args)) };
    let keys: usize = command::number(keys)?;
    let (keys, argv) = rest
        .split_at_checked(keys)
        .ok_or("ERR Number of keys can't be greater than number of args")?;
    INTERPRETER.with(|interpreter| {
        let function = interpreter.compiled(sha, code);
        let done = function.and_then(|it| interpreter.execute(server, &it, keys, argv));
        done.map_err(|error| in_words_of_redis(&error))
    })
}

thread_local! {
    static INTERPRETER: Interpreter = Interpreter::new().expect("an interpreter");
}

/// What a thread executes all its scripts with, as a server does: there are thousands of calls.
struct Interpreter {
    lua: Lua,
    /// Scripts by their SHA-1.
    compiled: RefCell<BTreeMap<Vec<u8>, Function>>,
    /// The server whose script is executed.
    server: Rc<RefCell<Server>>,
}

impl Interpreter {
    fn new() -> mlua::Result<Interpreter> {
        let (lua, server) = (Lua::new(), Rc::<RefCell<Server>>::default());
        let call = |server: &RefCell<Server>, args: &Variadic<Value>| -> mlua::Result<Reply> {
            let args = args.iter().map(argument).collect::<mlua::Result<Vec<_>>>()?;
            let name = args.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
            let done = command::execute(&mut server.borrow_mut(), &name, &args);
            Ok(done.unwrap_or_else(Reply::Error))
        };
        let redis = lua.create_table()?;
        let of = server.clone();
        let call_or_fail = lua.create_function(move |lua, args| match call(&of, &args)? {
            Reply::Error(text) => Err(mlua::Error::runtime(text)),
            reply => to_lua(lua, &reply),
        })?;
        redis.set("call", call_or_fail)?;
        let of = server.clone();
        let pcall = lua.create_function(move |lua, args| to_lua(lua, &call(&of, &args)?))?;
        redis.set("pcall", pcall)?;
        let error_reply = lua.create_function(|lua, text: mlua::LuaString| {
            let table = lua.create_table()?;
            table.set("err", text)?;
            Ok(table)
        })?;
        redis.set("error_reply", error_reply)?;
        lua.globals().set("redis", redis)?;
        Ok(Interpreter { lua, compiled: RefCell::default(), server })
    }

    fn compiled(&self, sha: &[u8], code: &str) -> mlua::Result<Function> {
        if let Some(function) = self.compiled.borrow().get(sha) {
            return Ok(function.clone());
        }
        let function = self.lua.load(code).set_name("@user_script").into_function()?;
        let mut compiled = self.compiled.borrow_mut();
        if compiled.len() >= MAX_COMPILED {
            compiled.clear();
        }
        compiled.insert(sha.to_vec(), function.clone());
        Ok(function)
    }

    fn execute(
        &self,
        server: &mut Server,
        function: &Function,
        keys: &[Text],
        argv: &[Text],
    ) -> mlua::Result<Reply> {
        let strings = |parts: &[Text]| -> mlua::Result<Table> {
            let strings = parts.iter().map(|part| self.lua.create_string(part));
            self.lua.create_sequence_from(strings.collect::<mlua::Result<Vec<_>>>()?)
        };
        self.lua.globals().set("KEYS", strings(keys)?)?;
        self.lua.globals().set("ARGV", strings(argv)?)?;
        std::mem::swap(server, &mut self.server.borrow_mut());
        let called: mlua::Result<MultiValue> = function.call(());
        std::mem::swap(server, &mut self.server.borrow_mut());
        from_lua(&called?.pop_front().unwrap_or(Value::Nil))
    }
}

fn argument(value: &Value) -> mlua::Result<Text> {
    match value {
        Value::String(text) => Ok((&*text.as_bytes()).into()),
        Value::Integer(number) => Ok(number.to_string().into_bytes().into()),
        Value::Number(number) => Ok(number.to_string().into_bytes().into()),
        _ => Err(mlua::Error::runtime(
            "ERR Lua redis lib command arguments must be strings or integers",
        )),
    }
}

fn to_lua(lua: &Lua, reply: &Reply) -> mlua::Result<Value> {
    let field = |name: &str, text: &str| -> mlua::Result<Value> {
        let table = lua.create_table()?;
        table.set(name, lua.create_string(text)?)?;
        Ok(Value::Table(table))
    };
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        #[allow(clippy::cast_precision_loss)] // Lua 5.1 has no other numbers
        Reply::Integer(number) => Value::Number(*number as f64),
        Reply::Bulk(bytes) => Value::String(lua.create_string(bytes)?),
        Reply::Status(text) => field("ok", text)?,
        Reply::Error(text) => field("err", text)?,
        Reply::Array(parts) => {
            let parts = parts.iter().map(|part| to_lua(lua, part));
            let parts = parts.collect::<mlua::Result<Vec<_>>>()?;
            Value::Table(lua.create_sequence_from(parts)?)
        }
    })
}

/// Numbers lose what stands behind the point, and an array ends at its first nil.
fn from_lua(value: &Value) -> mlua::Result<Reply> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.to_string_lossy()),
        _ => None,
    };
    Ok(match value {
        Value::Boolean(true) => Reply::Integer(1),
        Value::Integer(number) => Reply::Integer(*number),
        #[allow(clippy::cast_possible_truncation)] // as Redis does it
        Value::Number(number) => Reply::Integer(*number as i64),
        Value::String(text) => Reply::Bulk((&*text.as_bytes()).into()),
        Value::Table(table) => {
            if let Some(error) = text(&table.raw_get("err")?) {
                return Ok(Reply::Error(error));
            }
            if let Some(status) = text(&table.raw_get("ok")?) {
                return Ok(Reply::Status(status));
            }
            let parts = table.sequence_values::<Value>();
            Reply::Array(parts.map(|part| from_lua(&part?)).collect::<mlua::Result<_>>()?)
        }
        _ => Reply::Nil,
    })
}

/// An error of a command keeps its code; one of Lua itself has `ERR`.
fn in_words_of_redis(error: &mlua::Error) -> String {
    match error {
        mlua::Error::CallbackError { cause, .. } => in_words_of_redis(cause),
        mlua::Error::RuntimeError(text) => {
            let text = text.lines().next().unwrap_or_default();
            let code = text.split(' ').next().unwrap_or_default();
            let has_code = !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase());
            if has_code { text.to_owned() } else { format!("ERR {text}") }
        }
        other => format!("ERR {other}"),
    }
}
