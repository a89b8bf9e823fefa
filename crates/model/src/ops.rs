//! The tensor operations of whatever may run on a GPU, each with what the host has to ask of the device for it. The same code
//! runs on a CPU, where [`counted`] tells what it would ask of a GPU.
//!
//! What an operation asks for is what candle 0.11 does on CUDA, read in its source. A view (narrow, transpose, a reshape of what
//! lies in one piece) asks for nothing.

use candle_core::{DType, Device, Result, Shape, Tensor, WithDType};
use std::cell::Cell;
use std::ops::{Add, Sub};

/// What the host asks of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Kernels, products, and copies within the device.
    pub launches: u64,
    /// Shapes and strides that candle uploads for a kernel: for each sum, maximum and selection of rows, and for each other
    /// kernel that reads a view which does not lie in one piece. They hold no values, and cost the host another call.
    pub layouts: u64,
    /// Values that go to the device: token ids, tables, indices.
    pub uploads: u64,
    /// Waits of the host until all work is done, for values that come back.
    pub syncs: u64,
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            launches: self.launches + other.launches,
            layouts: self.layouts + other.layouts,
            uploads: self.uploads + other.uploads,
            syncs: self.syncs + other.syncs,
        }
    }
}

impl Sub for Work {
    type Output = Self;

    /// What a longer run asked for beyond a shorter one.
    fn sub(self, other: Self) -> Self {
        Self {
            launches: self.launches.saturating_sub(other.launches),
            layouts: self.layouts.saturating_sub(other.layouts),
            uploads: self.uploads.saturating_sub(other.uploads),
            syncs: self.syncs.saturating_sub(other.syncs),
        }
    }
}

thread_local! {
    static WORK: Cell<Option<Work>> = const { Cell::new(None) };
}

/// Runs something and gives what it asked of the device on this thread. A CPU plays a GPU meanwhile: see [`on_host`].
pub fn counted<R>(run: impl FnOnce() -> R) -> (R, Work) {
    let outer = WORK.replace(Some(Work::default()));
    let result = run();
    let work = WORK.replace(outer).unwrap_or_default();
    (result, work)
}

/// Whether values may be looked at where they lie: on a CPU that does not play a GPU.
pub fn on_host(x: &Tensor) -> bool {
    x.device().is_cpu() && WORK.get().is_none()
}

fn ask(more: Work) {
    WORK.set(WORK.get().map(|work| work + more));
}

/// One kernel, that needs a layout or does not.
fn launch(layout: bool) {
    ask(Work {
        launches: 1,
        layouts: u64::from(layout),
        ..Work::default()
    });
}

/// A kernel over each value of `x`.
///
/// # Errors
/// Those of `op`.
pub fn map(x: &Tensor, op: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    launch(!x.is_contiguous());
    op(x)
}

/// A kernel over pairs of values, of which one side may be broadcast.
///
/// # Errors
/// Those of `op`; shapes that do not fit.
pub fn zip(
    a: &Tensor,
    b: &Tensor,
    op: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let shape = a.shape().broadcast_shape_binary_op(b.shape(), "zip")?;
    let whole = |x: &Tensor| x.is_contiguous() && x.elem_count() == shape.elem_count();
    launch(!whole(a) || !whole(b));
    op(a, b)
}

/// A sum or maximum over a dimension of `x`.
///
/// # Errors
/// Those of `op`.
pub fn reduce(x: &Tensor, op: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    launch(true);
    op(x)
}

/// One kernel that reads what lies in one piece: a norm, a softmax, RoPE.
///
/// # Errors
/// Those of `op`.
pub fn fused(op: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    launch(false);
    op()
}

/// A product of matrices, which reads views as they lie.
///
/// # Errors
/// Shapes that do not fit.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    launch(false);
    a.matmul(b)
}

/// `x` as numbers of another type.
///
/// # Errors
/// A type that `x` cannot have.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match x.dtype() == dtype {
        true => Ok(x.clone()),
        false => map(x, |x| x.to_dtype(dtype)),
    }
}

/// `x` in one piece.
///
/// # Errors
/// A failed copy.
pub fn packed(x: &Tensor) -> Result<Tensor> {
    match x.is_contiguous() {
        true => Ok(x.clone()),
        false => map(x, Tensor::contiguous),
    }
}

/// `x` in another shape; a copy where it does not lie in one piece.
///
/// # Errors
/// A shape of another size.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    packed(x)?.reshape(shape)
}

/// Tensors one behind the other, a copy of each; a single one as it is.
///
/// # Errors
/// Shapes that do not fit.
pub fn cat<A: AsRef<Tensor>>(tensors: &[A], dim: usize) -> Result<Tensor> {
    if tensors.len() > 1 {
        tensors.iter().for_each(|_| launch(false));
    }
    Tensor::cat(tensors, dim)
}

/// Places `places`, `[n]`, of the first dimension of `x`.
///
/// # Errors
/// A place that is none.
pub fn rows(x: &Tensor, places: &Tensor) -> Result<Tensor> {
    launch(true);
    x.index_select(places, 0)
}

/// Writes `values` into `store` from place `at` of dimension `dim` on.
///
/// # Errors
/// Shapes that do not fit.
pub fn write(store: &Tensor, values: &Tensor, dim: usize, at: usize) -> Result<()> {
    launch(false);
    store.slice_set(values, dim, at)
}

/// Writes each value to the place of dimension `dim` that `places` has for it, and those to none that have `u32::MAX`; `places` is
/// of the shape of `values`.
///
/// # Errors
/// Shapes that do not fit.
pub fn scatter(store: &Tensor, places: &Tensor, values: &Tensor, dim: usize) -> Result<()> {
    launch(false);
    store.scatter_set(places, values, dim)
}

/// Zeros.
///
/// # Errors
/// The device has not enough memory.
pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    launch(false);
    Tensor::zeros(shape, dtype, device)
}

/// Values of the host as a tensor on `device`.
///
/// # Errors
/// A shape of another size.
pub fn upload<D: WithDType>(
    values: Vec<D>,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    ask(Work {
        uploads: 1,
        ..Work::default()
    });
    Tensor::from_vec(values, shape.into(), device)
}

/// All values of `x` on the host.
///
/// # Errors
/// `x` holds another type.
pub fn read<D: WithDType>(x: &Tensor) -> Result<Vec<D>> {
    let flat = reshape(x, x.elem_count())?;
    ask(Work {
        syncs: 1,
        ..Work::default()
    });
    flat.to_vec1()
}

/// Waits until `device` has done all that it was asked for.
///
/// # Errors
/// Some of it failed.
pub fn wait(device: &Device) -> Result<()> {
    ask(Work {
        syncs: 1,
        ..Work::default()
    });
    device.synchronize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[2, 3]`
    fn numbers() -> Tensor {
        upload((0..6).map(|i| i as f32).collect(), (2, 3), &Device::Cpu).unwrap()
    }

    fn asked(run: impl FnOnce(&Tensor) -> Result<Tensor>) -> (u64, u64) {
        let x = numbers();
        let (result, work) = counted(|| run(&x));
        result.unwrap();
        assert_eq!((work.uploads, work.syncs), (0, 0));
        (work.launches, work.layouts)
    }

    #[test]
    fn only_what_does_not_lie_in_one_piece_takes_a_layout() {
        assert_eq!(asked(|x| map(x, Tensor::relu)), (1, 0));
        assert_eq!(asked(|x| map(&x.t()?, Tensor::relu)), (1, 1));
        assert_eq!(asked(|x| zip(x, x, |a, b| a + b)), (1, 0));
        assert_eq!(asked(|x| zip(x, &x.get(0)?, Tensor::broadcast_add)), (1, 1));
        // A row over one row is no broadcast.
        let one = |x: &Tensor| zip(&x.narrow(0, 0, 1)?, &x.get(1)?, Tensor::broadcast_add);
        assert_eq!(asked(one), (1, 0));
        assert_eq!(asked(|x| reduce(x, |x| x.sum(1))), (1, 1));
        assert_eq!(asked(|x| product(x, &x.t()?)), (1, 0));
    }

    #[test]
    fn what_is_there_already_is_free() {
        assert_eq!(asked(|x| cast(x, DType::F32)), (0, 0));
        assert_eq!(asked(|x| cast(x, DType::F64)), (1, 0));
        assert_eq!(asked(packed), (0, 0));
        assert_eq!(asked(|x| packed(&x.t()?)), (1, 1));
        assert_eq!(asked(|x| reshape(x, (3, 2))), (0, 0));
        assert_eq!(asked(|x| reshape(&x.t()?, (2, 3))), (1, 1));
        assert_eq!(asked(|x| cat(&[x], 0)), (0, 0));
        assert_eq!(asked(|x| cat(&[x, x, x], 0)), (3, 0));
    }

    #[test]
    fn a_cpu_plays_a_gpu_while_it_is_counted() {
        let x = numbers();
        assert!(on_host(&x));
        let (inner, work) = counted(|| {
            assert!(!on_host(&x));
            let (values, inner) = counted(|| read::<f32>(&x.t()?));
            assert_eq!(values.unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
            assert!(!on_host(&x));
            upload(vec![1u32], 1, &Device::Cpu).map(|_| inner)
        });
        let inner = inner.unwrap();
        assert_eq!((inner.launches, inner.syncs, inner.uploads), (1, 1, 0));
        assert_eq!((work.launches, work.syncs, work.uploads), (0, 0, 1));
        assert!(on_host(&x));
    }

    /// What has no place stays where it is, which the composed cache relies on for rows that sit out a step.
    #[test]
    fn a_value_without_a_place_is_not_written() {
        let store = zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        let places = upload(vec![2, u32::MAX], (2, 1), &Device::Cpu).unwrap();
        let values = upload(vec![5f32, 7.0], (2, 1), &Device::Cpu).unwrap();
        scatter(&store, &places, &values, 1).unwrap();
        let found = read::<f32>(&store).unwrap();
        assert_eq!(found, [0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
