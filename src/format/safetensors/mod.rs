//! safetensors: `u64` header length, a JSON header of names, dtypes, shapes and byte ranges, then the bytes.
//!
//! Reading maps the file and validates all of it before anything is allocated in proportion to what it claims: limits
//! on header, count and dimensions, unique names, checked products, byte ranges that tile the data without overlap or gap,
//! exact file length. A common reader that keeps the last of two equal names would see another file than the next reader does.

mod header;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use header::{DTYPES, METADATA};
pub use header::{Header, MAX_DIMS, MAX_HEADER, MAX_TENSORS, TensorInfo};

use super::atomic::{Sink, write_with};
use super::json::Json;
use super::{file_len, short};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::shape::Layout;
use crate::tensor::Tensor;

/// A mapped file. Tensors on the CPU are views of the map, so a trunk costs no memory of its own; the file must not be changed
/// in place while any of them lives (nothing in this crate does so).
#[derive(Clone, Debug)]
pub struct SafeTensors {
    path: PathBuf,
    map: Arc<memmap2::Mmap>,
    header: Header,
}

impl SafeTensors {
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if file_len(path)? < 8 {
            return Err(Error::file(path, "is truncated: a safetensors file has at least 8 bytes"));
        }
        let map = Device::map_file(path)?;
        let header = Header::parse(path, &map)?;
        Ok(SafeTensors { path: path.to_path_buf(), map, header })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.names()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    pub fn len(&self) -> usize {
        self.header.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.header.tensors.is_empty()
    }

    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.header.metadata()
    }

    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.get(name).ok_or_else(|| {
            let some: Vec<_> = self.names().take(5).map(short).collect();
            let reason = format!("has no tensor `{}`; it holds {}: {} …", short(name), self.len(), some.join(", "));
            Error::file(&self.path, reason)
        })
    }

    /// On the CPU a view of the map (a copy where the file holds the tensor misaligned); on a GPU an upload.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.info(name)?;
        let Some(dtype) = info.dtype else {
            let what = format!("{}: tensor `{}` is {}", self.path.display(), short(name), short(&info.dtype_name));
            let hint = "convert it to F32, F16, BF16, F64, U8, I32 or I64".into();
            return Err(Error::Unsupported { op: "safetensors", what, hint });
        };
        let (begin, len) = (self.header.data + info.begin, info.end - info.begin);
        if device.is_cpu() && begin % dtype.size() == 0 {
            let buffer = device.mapped(&self.map, begin, len)?;
            return Tensor::view_of(&buffer, dtype, Layout::contiguous(&info.dims));
        }
        let out = Tensor::empty(device, &info.dims, dtype)?;
        out.set_bytes(&self.map[begin..begin + len])?;
        Ok(out)
    }
}

/// Writes a file that replaces `path` whole or not at all. The same tensors give the same bytes: widest elements first, so
/// that each tensor is aligned, then by name.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    write_with(path, |sink| write_into(sink, path, tensors, metadata))
}

/// The same into a file of a transaction. `path` serves the messages alone.
pub(super) fn write_into(
    sink: &mut Sink<'_>,
    path: &Path,
    mut tensors: Vec<(&str, &Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    tensors.sort_by(|a, b| b.1.dtype().size().cmp(&a.1.dtype().size()).then(a.0.cmp(b.0)));
    sink.write(&encode_header(path, &tensors, metadata)?)?;
    tensors.iter().try_for_each(|(_, tensor)| sink.write(&tensor.to_bytes()?))
}

fn encode_header(path: &Path, tensors: &[(&str, &Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        let texts = metadata.iter().map(|(name, text)| (name.clone(), Json::text(text))).collect();
        entries.push((METADATA.to_owned(), Json::Object(texts)));
    }
    let whole = |n: usize| Json::Number((n as u64).into());
    let (mut begin, mut seen) = (0usize, HashSet::new());
    for (name, tensor) in tensors {
        if *name == METADATA || !seen.insert(*name) {
            return Err(Error::file(path, format!("cannot hold a tensor named `{}`, which is taken", short(name))));
        }
        if tensor.dims().len() > MAX_DIMS {
            return Err(Error::shape("safetensors", "tensor", format!("at most {MAX_DIMS} dimensions"), tensor.dims()));
        }
        let end = begin.checked_add(tensor.byte_len());
        let end = end.ok_or_else(|| Error::SizeOverflow { op: "safetensors", dims: tensor.dims().to_vec() })?;
        let dtype = DTYPES.iter().find(|(.., ours)| *ours == Some(tensor.dtype())).map_or("", |(name, ..)| name);
        let fields = vec![
            ("dtype".to_owned(), Json::text(dtype)),
            ("shape".to_owned(), Json::List(tensor.dims().iter().map(|&d| whole(d)).collect())),
            ("data_offsets".to_owned(), Json::List(vec![whole(begin), whole(end)])),
        ];
        entries.push(((*name).to_owned(), Json::Object(fields)));
        begin = end;
    }
    let text = serde_json::to_string(&Json::Object(entries)).map_err(|e| Error::file(path, e))?;
    let len = text.len().next_multiple_of(8);
    if len > MAX_HEADER || tensors.len() > MAX_TENSORS || metadata.len() > MAX_TENSORS {
        let reason = format!(
            "would take {} tensors and a header of {len} bytes; the limits are {MAX_TENSORS} and {MAX_HEADER}",
            tensors.len()
        );
        return Err(Error::file(path, reason));
    }
    let mut out = (len as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out.resize(8 + len, b' ');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::header::testing::{entries, entry, file};
    use super::*;
    use crate::dtype::DType;
    use proptest::prelude::*;

    #[test]
    fn unknown_types_are_listed_and_refused_when_asked_for() {
        let scratch = Scratch::new("types");
        let path = scratch.path().join("f");
        let header =
            entries(&[entry("a", "I16", "[2]", 0, 4), entry("b", "Q7", "[3]", 4, 9), entry("c", "BOOL", "[1]", 9, 10)]);
        std::fs::write(&path, file(&header, 10)).unwrap();
        let open = SafeTensors::open(&path).unwrap();
        assert_eq!(open.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(open.info("b").unwrap().dtype_name, "Q7");
        let error = open.tensor("a", &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains("`a` is I16"), "{error}");
        assert_eq!(open.tensor("c", &Device::cpu()).unwrap().to_vec::<u8>().unwrap(), [7]);
        let error = open.tensor("d", &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains("no tensor `d`") && error.contains("a, b, c"), "{error}");
    }

    #[test]
    fn misaligned_and_empty_tensors_are_read() {
        let scratch = Scratch::new("misaligned");
        let path = scratch.path().join("f");
        let header = entries(&[
            entry("byte", "U8", "[1]", 0, 1),
            entry("odd", "F32", "[2]", 1, 9),
            entry("none", "F32", "[0,3]", 9, 9),
            entry("scalar", "I64", "[]", 9, 17),
        ]);
        std::fs::write(&path, file(&header, 17)).unwrap();
        let open = SafeTensors::open(&path).unwrap();
        let cpu = Device::cpu();
        let seven = f32::from_le_bytes([7; 4]);
        assert_eq!(open.tensor("odd", &cpu).unwrap().to_vec::<f32>().unwrap(), [seven, seven]);
        assert!(open.tensor("none", &cpu).unwrap().to_vec::<f32>().unwrap().is_empty());
        assert_eq!(open.tensor("scalar", &cpu).unwrap().dims(), [0usize; 0]);
    }

    #[test]
    fn what_is_written_comes_back_as_views_of_the_map() {
        let scratch = Scratch::new("roundtrip");
        let path = scratch.path().join("f.safetensors");
        let cpu = Device::cpu();
        let a = Tensor::from_slice(&cpu, &[2, 3], &[1.0f32, -0.0, f32::NAN, 3.0, 4.0, 5.0]).unwrap();
        let b = Tensor::from_f32(&cpu, &[3], &[0.5, 1.5, 2.5], DType::BF16).unwrap();
        let c = Tensor::from_slice(&cpu, &[2], &[1.0f64 / 3.0, -1.0]).unwrap();
        let d = Tensor::from_slice(&cpu, &[1], &[9u8]).unwrap();
        let transposed = a.transpose(0, 1).unwrap();
        let metadata = BTreeMap::from([("format".to_owned(), "pt \"quoted\" ü".to_owned())]);
        let tensors = [("d", &d), ("b", &b), ("a", &a), ("c", &c), ("t", &transposed)];
        write(&path, tensors, &metadata).unwrap();
        let first = std::fs::read(&path).unwrap();
        write(&path, tensors.into_iter().rev(), &metadata).unwrap();
        assert_eq!(first, std::fs::read(&path).unwrap(), "the order of the arguments does not matter");
        let open = SafeTensors::open(&path).unwrap();
        assert_eq!(open.metadata(), &metadata);
        let before = cpu.allocated_bytes();
        for (name, tensor) in tensors {
            let read = open.tensor(name, &cpu).unwrap();
            assert_eq!((read.dims(), read.dtype()), (tensor.dims(), tensor.dtype()));
            assert_eq!(read.to_bytes().unwrap(), tensor.to_bytes().unwrap());
        }
        assert_eq!(cpu.allocated_bytes(), before, "views allocate nothing");
        assert!(open.tensor("a", &cpu).unwrap().zero().is_err(), "a mapped tensor is read-only");
        assert!(write(&path, [("a", &a), ("a", &b)], &metadata).is_err());
        assert!(write(&path, [("__metadata__", &a)], &metadata).is_err());
        assert_eq!(first, std::fs::read(&path).unwrap(), "a refused write leaves the old file");
    }

    #[test]
    fn directories_and_missing_files_are_named() {
        let scratch = Scratch::new("missing");
        let error = SafeTensors::open(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        assert!(matches!(SafeTensors::open(scratch.path().join("none")), Err(Error::Io { .. })));
        std::fs::write(scratch.path().join("empty"), []).unwrap();
        assert!(SafeTensors::open(scratch.path().join("empty")).unwrap_err().to_string().contains("truncated"));
    }

    #[test]
    fn a_gpu_gets_an_upload() {
        let scratch = Scratch::new("upload");
        let path = scratch.path().join("f");
        let a = Tensor::from_slice(&Device::cpu(), &[2, 2], &[1.0f32; 4]).unwrap();
        write(&path, [("a", &a)], &BTreeMap::new()).unwrap();
        let gpu = Device::trace(80);
        let read = SafeTensors::open(&path).unwrap().tensor("a", &gpu).unwrap();
        assert_eq!((read.device(), read.dims()), (&gpu, &[2usize, 2][..]));
        assert!(gpu.allocated_bytes() >= 16);
    }

    proptest! {
        /// Any shapes, types and strides: what is read equals what was written, in row-major order of the view.
        #[test]
        fn any_views_come_back(
            parts in prop::collection::vec((prop::collection::vec(0usize..5, 0..4), 0usize..4, any::<bool>()), 0..6),
        ) {
            let cpu = Device::cpu();
            let mut tensors = BTreeMap::new();
            for (i, (dims, kind, strided)) in parts.into_iter().enumerate() {
                let dtype = [DType::F32, DType::F16, DType::BF16, DType::F64][kind];
                let values: Vec<_> = (0..dims.iter().product()).map(|v| v as f32 - 3.5).collect();
                let tensor = Tensor::from_f32(&cpu, &dims, &values, dtype).unwrap();
                let last = dims.len().saturating_sub(1);
                let tensor = if strided && last > 0 { tensor.transpose(0, last).unwrap() } else { tensor };
                let tensor = if strided && tensor.rows() > 1 && dims.len() > 1 && tensor.dims()[0] > 0 {
                    tensor.slice(0, 1, tensor.dims()[0] - 1).unwrap()
                } else {
                    tensor
                };
                tensors.insert(format!("t.{i}\"é"), tensor);
            }
            let scratch = Scratch::new("any");
            let path = scratch.path().join("f");
            write(&path, tensors.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new()).unwrap();
            let open = SafeTensors::open(&path).unwrap();
            prop_assert_eq!(open.len(), tensors.len());
            for (name, tensor) in &tensors {
                let read = open.tensor(name, &cpu).unwrap();
                prop_assert_eq!((read.dims(), read.dtype()), (tensor.dims(), tensor.dtype()));
                prop_assert_eq!(read.to_bytes().unwrap(), tensor.to_bytes().unwrap());
            }
        }
    }
}
