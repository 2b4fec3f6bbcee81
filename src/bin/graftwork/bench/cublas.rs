//! cuBLASLt, loaded at run time: the bare product that a GPU's kernels are held against. Only in builds with the feature `bench-cublas`.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::time::Instant;

use cudarc::cublaslt::{result as lt, sys};
use cudarc::driver::result::stream::{self, StreamKind};
use graftwork::testing::normal;
use graftwork::{DType, Device, Error, Result, Tensor};

const WORKSPACE: usize = 64 << 20;
/// The heuristics' first so many algorithms are timed, and the fastest is the baseline.
const CANDIDATES: usize = 16;
/// Calls that choose between them.
const TRIES: usize = 5;

pub struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: sys::cudaStream_t,
    device: Device,
    workspace: Tensor,
}

impl Blas {
    /// The library beside the GPU `device`, which comes back on the stream that both use, so that a wait for one is a wait for both.
    /// `None` for what is no GPU, and where the library is not installed.
    pub fn open(device: Device) -> Result<(Device, Option<Self>)> {
        let ordinal = device.name().strip_prefix("cuda:").and_then(|number| number.parse().ok());
        // SAFETY: loads the library and lets it go again, which runs no code of it but its own initialisers.
        let (Some(ordinal), true) = (ordinal, unsafe { sys::is_culib_present() }) else { return Ok((device, None)) };
        // Makes the device's context current on this thread, which a stream is made in.
        device.synchronize()?;
        let stream = stream::create(StreamKind::NonBlocking).map_err(|e| refused("cuStreamCreate", &e))?;
        // SAFETY: 1. the stream was made just now in the primary context of this GPU; 2. it is never destroyed; 3. nothing captures it.
        let device = unsafe { Device::cuda_on_stream(ordinal, stream.cast()) }?;
        let handle = lt::create_handle().map_err(|e| refused("cublasLtCreate", &e))?;
        let workspace = Tensor::zeros(&device, &[WORKSPACE], DType::U8)?;
        Ok((device.clone(), Some(Blas { handle, stream: stream.cast(), device, workspace })))
    }

    /// `y = x Wᵀ` with x `[m, k]` and W `[n, k]`, by the fastest of the library's algorithms, going round so many sets of operands.
    pub fn product(&self, sizes: [usize; 3], dtype: DType, sets: usize) -> Result<Product<'_>> {
        let [m, n, k] = sizes;
        let tensor = |name: &str, dims: [usize; 2]| {
            Tensor::from_f32(&self.device, &dims, &normal(name, dims[0] * dims[1]), dtype)
        };
        let (x, w) = (tensor("x", [m, k])?, tensor("w", [n, k])?);
        let set = |_| {
            let (own_x, own_w) =
                (Tensor::empty(&self.device, &[m, k], dtype)?, Tensor::empty(&self.device, &[n, k], dtype)?);
            own_x.copy_from(&x)?;
            own_w.copy_from(&w)?;
            Ok([own_x, own_w, Tensor::zeros(&self.device, &[m, n], dtype)?])
        };
        let sets = (0..sets.max(1)).map(set).collect::<Result<Vec<_>>>()?;
        let call = Call::new(sizes, dtype)?;
        let mut product = Product { blas: self, call, algorithm: None, sets };
        product.algorithm = Some(product.fastest()?);
        Ok(product)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle was made by `open`, and products borrow this value.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// Descriptors of one product. The library counts in columns: it is told to compute `yᵀ = W xᵀ`.
struct Call {
    operation: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
}

impl Call {
    fn new([m, n, k]: [usize; 3], dtype: DType) -> Result<Self> {
        let kind = match dtype {
            DType::F32 => sys::cudaDataType::CUDA_R_32F,
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
            got => {
                let expected = "f32, f16 or bf16".into();
                return Err(Error::DType { op: "cublasLtMatmul", argument: "x", expected, got });
            }
        };
        let layout = |rows: usize, cols: usize| {
            lt::create_matrix_layout(kind, rows as u64, cols as u64, rows as i64)
                .map_err(|e| refused("cublasLtMatrixLayoutCreate", &e))
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = lt::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)
            .map_err(|e| refused("cublasLtMatmulDescCreate", &e))?;
        let call = Call { operation, w: layout(k, n)?, x: layout(k, m)?, y: layout(n, m)? };
        // CUBLAS_OP_T, an enumeration that the bindings of this library leave out.
        let transposed = 1i32;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the descriptor lives; the attribute is read from a value of the type and size that the library knows for it.
        unsafe {
            lt::set_matmul_desc_attribute(
                operation,
                attribute,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
        }
        .map_err(|e| refused("cublasLtMatmulDescSetAttribute", &e))?;
        Ok(call)
    }

    /// What the heuristics put first, best first.
    fn candidates(&self, handle: sys::cublasLtHandle_t) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>> {
        let preference = lt::create_matmul_pref().map_err(|e| refused("cublasLtMatmulPreferenceCreate", &e))?;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; CANDIDATES];
        let (mut count, workspace) = (0, WORKSPACE);
        // SAFETY: 1. handle, descriptors and preference live; 2. the attribute's value has its type and size; 3. there is room for as many
        // results as are asked for, and `count` says how many were written.
        let outcome = unsafe {
            lt::set_matmul_pref_attribute(preference, attribute, (&raw const workspace).cast(), size_of_val(&workspace))
                .and_then(|()| {
                    sys::cublasLtMatmulAlgoGetHeuristic(
                        handle,
                        self.operation,
                        self.w,
                        self.x,
                        self.y,
                        self.y,
                        preference,
                        CANDIDATES as i32,
                        found.as_mut_ptr().cast(),
                        &mut count,
                    )
                    .result()
                })
                .and_then(|()| lt::destroy_matmul_pref(preference))
        };
        outcome.map_err(|e| refused("cublasLtMatmulAlgoGetHeuristic", &e))?;
        // SAFETY: the library has written the first `count`.
        Ok(found.iter().take(count as usize).map(|result| unsafe { result.assume_init() }).collect())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: each was made by `new` and is destroyed once. A failure leaves nothing to be done.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.operation);
            for layout in [self.w, self.x, self.y] {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

pub struct Product<'a> {
    blas: &'a Blas,
    call: Call,
    algorithm: Option<sys::cublasLtMatmulAlgo_t>,
    /// x, W, y.
    sets: Vec<[Tensor; 3]>,
}

impl Product<'_> {
    /// The call number `turn`.
    pub fn run(&self, turn: usize) -> Result<()> {
        let Some(algorithm) = &self.algorithm else { return Ok(()) };
        self.with(algorithm, turn)
    }

    fn with(&self, algorithm: &sys::cublasLtMatmulAlgo_t, turn: usize) -> Result<()> {
        let [x, w, y] = &self.sets[turn % self.sets.len()];
        let at = |tensor: &Tensor| tensor.address().map(|address| address as *mut c_void);
        let (alpha, beta) = (1.0f32, 0.0f32);
        let Call { operation, w: w_layout, x: x_layout, y: y_layout } = self.call;
        // SAFETY: 1. handle and descriptors live; 2. the layouts are those of the three tensors, which live and are contiguous; 3. the
        // workspace is as large as was said when the algorithm was chosen; 4. all work on these buffers is in the order of one stream.
        unsafe {
            lt::matmul(
                self.blas.handle,
                operation,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at(w)?,
                w_layout,
                at(x)?,
                x_layout,
                at(y)?,
                y_layout,
                at(y)?,
                y_layout,
                algorithm,
                at(&self.blas.workspace)?,
                WORKSPACE,
                self.blas.stream,
            )
        }
        .map_err(|e| refused("cublasLtMatmul", &e))
    }

    fn fastest(&self) -> Result<sys::cublasLtMatmulAlgo_t> {
        let mut best = None;
        for candidate in self.call.candidates(self.blas.handle)? {
            // One that the heuristics name may still refuse these operands.
            if self.with(&candidate.algo, 0).is_err() {
                continue;
            }
            self.blas.device.synchronize()?;
            let start = Instant::now();
            (1..=TRIES).try_for_each(|turn| self.with(&candidate.algo, turn))?;
            self.blas.device.synchronize()?;
            let seconds = start.elapsed().as_secs_f64();
            if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                best = Some((seconds, candidate.algo));
            }
        }
        best.map(|(_, algorithm)| algorithm).ok_or_else(|| Error::Launch {
            kernel: "cublasLtMatmul",
            reason: "the heuristics know no algorithm for this product".into(),
        })
    }
}

fn refused(call: &'static str, error: &dyn std::fmt::Debug) -> Error {
    Error::Launch { kernel: call, reason: format!("{error:?}") }
}
