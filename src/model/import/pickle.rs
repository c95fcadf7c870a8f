//! The part of Python's pickle format that PyTorch writes for state dicts, read without running anything.
//!
//! A pickle is a program for a small stack machine. The one here knows how to build tuples, lists, dicts and
//! descriptions of tensors; a call of any other Python function becomes [`Node::Other`]. Values live in one list and
//! refer to each other by index, so that deep nesting and cycles cost no recursion, and the number of operations is
//! bounded, so that a hostile file costs neither memory nor time.

use std::collections::HashMap;

/// A state dict takes some 30 operations per tensor; this is enough for 30,000 tensors.
const MAX_OPERATIONS: usize = 1 << 20;
/// Highest number of dimensions of a tensor.
const MAX_RANK: usize = 8;

/// What is wrong with the bytes.
pub(super) type Reason = String;

/// Index of a value in a [`Pickle`].
pub(super) type Id = usize;

/// One Python value, borrowing its text from the file.
#[derive(Clone, Debug)]
pub(super) enum Node<'a> {
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by module and name.
    Global(&'a str, &'a str),
    Storage(Storage),
    Tensor(TensorInfo),
    /// None, booleans, floats, objects: of no use here.
    Other,
}

/// The numbers that one or several tensors look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) element: Element,
    /// Number of elements.
    pub(super) len: usize,
}

/// Type of a storage's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F16,
    BF16,
    F32,
    F64,
    /// Not a floating-point number; this many bytes.
    Whole(usize),
}

/// Where a tensor's numbers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorInfo {
    pub(super) storage: Storage,
    /// Elements before the first.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Elements between neighbours along each dimension.
    pub(super) strides: Vec<usize>,
}

/// A whole pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
}

impl Element {
    /// Bytes per number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Whole(size) => size,
        }
    }

    fn of_storage_class(name: &str) -> Option<Self> {
        Some(match name {
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "FloatStorage" => Self::F32,
            "DoubleStorage" => Self::F64,
            "LongStorage" => Self::Whole(8),
            "IntStorage" => Self::Whole(4),
            "ShortStorage" => Self::Whole(2),
            "CharStorage" | "ByteStorage" | "BoolStorage" => Self::Whole(1),
            _ => return None,
        })
    }
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `bytes`; also returns how many bytes it took.
    ///
    /// # Errors
    ///
    /// An unknown or impossible operation, the end of the bytes before the end of the pickle, or too many operations.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<(Self, usize), Reason> {
        let mut machine = Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
        for _ in 0..MAX_OPERATIONS {
            let start = machine.at;
            let done = machine.step().map_err(|reason| format!("byte {start} of the pickle: {reason}"))?;
            if let Some(root) = done {
                return Ok((Self { nodes: machine.nodes, root }, machine.at));
            }
        }
        Err(format!("the pickle has more than {MAX_OPERATIONS} operations"))
    }

    /// The value the pickle stands for.
    pub(super) fn root(&self) -> &Node<'a> {
        self.node(self.root)
    }

    /// A value by its index.
    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        // Indices come from this pickle's own list.
        self.nodes.get(id).unwrap_or(&Node::Other)
    }

    /// All values, those that nothing refers to any more included.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.iter()
    }

    /// The value of `key` in the dict `node`.
    pub(super) fn get(&self, node: &Node<'a>, key: &str) -> Option<&Node<'a>> {
        let Node::Dict(items) = node else { return None };
        let found = items.iter().rev().find(|(k, _)| matches!(self.node(*k), Node::Text(text) if *text == key));
        found.map(|(_, value)| self.node(*value))
    }

    /// The tensors in the dict `node`, in the file's order.
    pub(super) fn tensors<'s>(&'s self, node: &'s Node<'a>) -> impl Iterator<Item = (&'a str, &'s TensorInfo)> {
        let items: &[(Id, Id)] = if let Node::Dict(items) = node { items } else { &[] };
        items.iter().filter_map(|(key, value)| match (self.node(*key), self.node(*value)) {
            (Node::Text(name), Node::Tensor(info)) => Some((*name, info)),
            _ => None,
        })
    }
}

/// Operations, by their names in Python's `pickletools`.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const STOP: u8 = b'.';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINSTRING: u8 = b'T';
    pub(super) const SHORT_BINSTRING: u8 = b'U';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const NEWOBJ: u8 = 0x81;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const FRAME: u8 = 0x95;
}

/// What lies on the stack: a value, or the mark that the next tuple, list or dict starts from.
#[derive(Clone, Copy)]
enum Slot {
    Value(Id),
    Mark,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Slot>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    /// One operation; the root after the last.
    fn step(&mut self) -> Result<Option<Id>, Reason> {
        let [code] = self.array()?;
        match code {
            op::PROTO => drop(self.take(1)?),
            op::FRAME => drop(self.take(8)?),
            op::STOP => return self.pop().map(Some),
            op::MARK => self.stack.push(Slot::Mark),
            op::APPEND => {
                let item = self.pop()?;
                self.extend(&[item])?;
            }
            op::APPENDS => {
                let items = self.pop_to_mark()?;
                self.extend(&items)?;
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_to_mark()?;
                self.insert(&items)?;
            }
            // Attributes of an object, of no use here.
            op::BUILD => drop(self.pop()?),
            op::BINPUT => {
                let index = self.size::<1>()?;
                self.remember(index)?;
            }
            op::LONG_BINPUT => {
                let index = self.size::<4>()?;
                self.remember(index)?;
            }
            op::MEMOIZE => self.remember(self.memo.len())?,
            op::BINGET => {
                let index = self.size::<1>()?;
                self.recall(index)?;
            }
            op::LONG_BINGET => {
                let index = self.size::<4>()?;
                self.recall(index)?;
            }
            code => {
                let made = self.make(code)?;
                self.push(made);
            }
        }
        Ok(None)
    }

    /// The value that an operation puts on the stack.
    fn make(&mut self, code: u8) -> Result<Node<'a>, Reason> {
        Ok(match code {
            op::NONE | op::NEWTRUE | op::NEWFALSE => Node::Other,
            op::BINFLOAT => {
                self.take(8)?;
                Node::Other
            }
            op::BININT1 => Node::Int(self.size::<1>()? as i64),
            op::BININT2 => Node::Int(self.size::<2>()? as i64),
            op::BININT => Node::Int(i32::from_le_bytes(self.array()?).into()),
            op::LONG1 => self.long()?,
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING => self.text::<1>()?,
            op::BINUNICODE | op::BINSTRING => self.text::<4>()?,
            op::EMPTY_TUPLE => Node::Tuple(Vec::new()),
            op::EMPTY_LIST => Node::List(Vec::new()),
            op::EMPTY_DICT => Node::Dict(Vec::new()),
            op::TUPLE => Node::Tuple(self.pop_to_mark()?),
            op::TUPLE1..=op::TUPLE3 => {
                let count = usize::from(code - op::TUPLE1) + 1;
                let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                Node::Tuple(items)
            }
            op::GLOBAL => Node::Global(self.line()?, self.line()?),
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (&Node::Text(module), &Node::Text(name)) = (self.node(module), self.node(name)) else {
                    return Err("the name of a class is not text".into());
                };
                Node::Global(module, name)
            }
            op::REDUCE | op::NEWOBJ => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)?
            }
            op::BINPERSID => {
                let id = self.pop()?;
                Node::Storage(self.storage(id)?)
            }
            code => return Err(format!("operation {code:#04x} is not one that PyTorch writes for a state dict")),
        })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Reason> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or("the pickle is cut off")?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        self.take(N)?.try_into().map_err(|_| "the pickle is cut off".into())
    }

    /// A number of `N` bytes, without sign.
    fn size<const N: usize>(&mut self) -> Result<usize, Reason> {
        Ok(self.array::<N>()?.iter().rev().fold(0, |value, &byte| (value << 8) | usize::from(byte)))
    }

    /// An integer of any length; one beyond 64 bits is of no use here.
    fn long(&mut self) -> Result<Node<'a>, Reason> {
        let count = self.size::<1>()?;
        let digits = self.take(count)?;
        let fill = if digits.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        let Some(low) = wide.get_mut(..count) else { return Ok(Node::Other) };
        low.copy_from_slice(digits);
        Ok(Node::Int(i64::from_le_bytes(wide)))
    }

    fn text<const N: usize>(&mut self) -> Result<Node<'a>, Reason> {
        let count = self.size::<N>()?;
        Ok(Node::Text(std::str::from_utf8(self.take(count)?).map_err(|_| "text is not UTF-8")?))
    }

    fn line(&mut self) -> Result<&'a str, Reason> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("the pickle is cut off")?;
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "the name of a class is not UTF-8".into())
    }

    fn node(&self, id: Id) -> &Node<'a> {
        // Indices come from this machine's own list.
        self.nodes.get(id).unwrap_or(&Node::Other)
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(Slot::Value(self.nodes.len()));
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, Reason> {
        match self.stack.pop() {
            Some(Slot::Value(id)) => Ok(id),
            _ => Err("a value is missing".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Reason> {
        let mark = self.stack.iter().rposition(|slot| matches!(slot, Slot::Mark)).ok_or("a mark is missing")?;
        let items = self.stack.drain(mark..).filter_map(|slot| match slot {
            Slot::Value(id) => Some(id),
            Slot::Mark => None,
        });
        Ok(items.collect())
    }

    /// The value on top of the stack, which stays there.
    fn top(&self) -> Result<Id, Reason> {
        match self.stack.last() {
            Some(Slot::Value(id)) => Ok(*id),
            _ => Err("a value is missing".into()),
        }
    }

    fn extend(&mut self, items: &[Id]) -> Result<(), Reason> {
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::List(list)) => list.extend(items),
            Some(Node::Other) => {} // an object that behaves like a list
            _ => return Err("items for something that is not a list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), Reason> {
        let top = self.top()?;
        let pairs = items.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err("a key of a dict has no value".into());
        }
        match self.nodes.get_mut(top) {
            Some(Node::Dict(dict)) => dict.extend(pairs.filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)))),
            Some(Node::Other) => {} // an object that behaves like a dict
            _ => return Err("items for something that is not a dict".into()),
        }
        Ok(())
    }

    fn remember(&mut self, index: usize) -> Result<(), Reason> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), Reason> {
        let id = *self.memo.get(&index).ok_or_else(|| format!("value {index} is used before it is made"))?;
        self.stack.push(Slot::Value(id));
        Ok(())
    }

    /// The result of a call: only those that build dicts and tensors are understood, none is made.
    fn call(&self, callable: Id, arguments: Id) -> Result<Node<'a>, Reason> {
        let (Node::Global(module, name), Node::Tuple(arguments)) = (self.node(callable), self.node(arguments)) else {
            return Ok(Node::Other);
        };
        let argument = |index: usize| arguments.get(index).map_or(&Node::Other, |id| self.node(*id));
        match (*module, *name) {
            ("collections", "OrderedDict") => Ok(Node::Dict(Vec::new())),
            ("torch._utils", "_rebuild_parameter") => match argument(0) {
                Node::Tensor(info) => Ok(Node::Tensor(info.clone())),
                _ => Err("a parameter without a tensor".into()),
            },
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                let Node::Storage(storage) = argument(0) else {
                    return Err("a tensor without a storage".into());
                };
                let (shape, strides) = (self.sizes(argument(2))?, self.sizes(argument(3))?);
                if shape.len() != strides.len() {
                    return Err(format!("a tensor of shape {shape:?} with strides {strides:?}"));
                }
                Ok(Node::Tensor(TensorInfo { storage: storage.clone(), offset: whole(argument(1))?, shape, strides }))
            }
            _ => Ok(Node::Other),
        }
    }

    fn sizes(&self, node: &Node<'a>) -> Result<Vec<usize>, Reason> {
        match node {
            Node::Tuple(items) if items.len() <= MAX_RANK => items.iter().map(|id| whole(self.node(*id))).collect(),
            _ => Err(format!("the shape of a tensor is not a tuple of up to {MAX_RANK} numbers")),
        }
    }

    /// `("storage", class, key, device, length, ...)`.
    fn storage(&self, id: Id) -> Result<Storage, Reason> {
        let Node::Tuple(parts) = self.node(id) else {
            return Err("the description of a storage is not a tuple".into());
        };
        let part = |index: usize| parts.get(index).map_or(&Node::Other, |id| self.node(*id));
        let (Node::Text("storage"), Node::Global(_, class), &Node::Text(key)) = (part(0), part(1), part(2)) else {
            return Err("the description of a storage is not one that PyTorch writes".into());
        };
        // Very old files had storages that look into others.
        if matches!(part(5), Node::Tuple(_)) {
            return Err(format!("storage {key:?} is a view of another, which is not supported"));
        }
        let element =
            Element::of_storage_class(class).ok_or_else(|| format!("storage type {class} is not supported"))?;
        Ok(Storage { key: key.to_owned(), element, len: whole(part(4))? })
    }
}

fn whole(node: &Node<'_>) -> Result<usize, Reason> {
    match node {
        Node::Int(value) => usize::try_from(*value).map_err(|_| format!("a size is {value}; expected 0 or more")),
        _ => Err("a size is not a whole number".into()),
    }
}
