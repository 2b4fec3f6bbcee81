use super::*;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Error;
use crate::tensor::Tensor;

fn graph(edges: &[(usize, usize)], n: usize) -> Adjacency {
    Adjacency::from_edges((n, n), edges, None).unwrap()
}

#[test]
fn what_is_no_graph_is_refused_by_name() {
    let refused = |offsets: &[usize], indices: &[usize], values: Option<Vec<f32>>, part: &str| {
        let text = Adjacency::new((2, 3), offsets.to_vec(), indices.to_vec(), values).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    refused(&[0, 1], &[0], None, "`offsets`");
    refused(&[1, 1, 1], &[0], None, "1 to 1");
    refused(&[0, 2, 1], &[0], None, "1 after 2 at row 1");
    refused(&[0, 1, 2], &[0, 3], None, "3 at place 1");
    refused(&[0, 1, 2], &[0, 2], Some(vec![1.0]), "`values`");
    refused(&[0, 1, 2], &[0, 2], Some(vec![1.0, f32::NAN]), "NaN at place 1");
    assert!(matches!(Adjacency::empty(usize::MAX, 1), Err(Error::SizeOverflow { .. })));
    assert!(matches!(Adjacency::from_edges((1, usize::MAX), &[], None), Err(Error::SizeOverflow { .. })));
    assert!(Adjacency::from_edges((2, 2), &[(0, 2)], None).is_err());
    assert!(Adjacency::from_edges((2, 2), &[(0, 1)], Some(&[])).is_err());
    assert!(Adjacency::from_dense((2, 2), &[0.0; 3]).is_err());
    assert!(matches!(Adjacency::empty(2, 3).unwrap().symmetric(), Err(Error::Shape { .. })));
    assert!(graph(&[(0, 1), (0, 1)], 2).require_simple().unwrap_err().to_string().contains("row 0"));
    let on = |values: &[i32]| Tensor::from_slice(&Device::cpu(), &[values.len()], values).unwrap();
    let negative = Csr::from_tensors(2, on(&[0, 1]), on(&[-1]), None).unwrap_err().to_string();
    assert!(negative.contains("-1 at place 0"), "{negative}");
    let floats = Tensor::zeros(&Device::cpu(), &[2], DType::F32).unwrap();
    assert!(matches!(Csr::from_tensors(2, floats, on(&[]), None), Err(Error::DType { .. })));
    assert!(matches!(Csr::from_tensors(2, on(&[]), on(&[]), None), Err(Error::Shape { .. })));
}

#[test]
fn edges_of_any_order_become_sorted_rows() {
    let g = Adjacency::from_edges((3, 4), &[(2, 1), (0, 3), (2, 0), (0, 1)], Some(&[1.0, 2.0, 3.0, 4.0])).unwrap();
    assert_eq!((g.offsets(), g.indices()), (&[0, 2, 2, 4][..], &[1, 3, 0, 1][..]));
    assert_eq!(g.values(), Some(&[4.0, 2.0, 3.0, 1.0][..]));
    assert_eq!((g.is_simple(), g.max_degree(), g.degree(1)), (true, 2, 0));
    assert_eq!(Adjacency::from_dense((3, 4), &g.to_dense()).unwrap(), g);
    let (turned, order) = g.transpose();
    assert_eq!((turned.rows(), turned.cols(), turned.neighbours(1)), (4, 3, &[0, 2][..]));
    assert_eq!(order, [2, 0, 3, 1]);
    assert_eq!(turned.transpose().0, g);
}

#[test]
fn loops_closure_and_blocks() {
    let g = Adjacency::from_edges((3, 3), &[(0, 1), (1, 1), (2, 0)], Some(&[2.0, 5.0, 3.0])).unwrap();
    let looped = g.with_self_loops().unwrap();
    assert_eq!(looped.to_dense(), [1.0, 2.0, 0.0, 0.0, 1.0, 0.0, 3.0, 0.0, 1.0]);
    assert_eq!(looped.without_self_loops().edges(), 2);
    assert_eq!(g.symmetric().unwrap().to_dense(), [0.0, 2.0, 3.0, 2.0, 5.0, 0.0, 3.0, 0.0, 0.0]);
    let both = Adjacency::block_diagonal(&[
        g.clone(),
        Adjacency::empty(1, 2).unwrap().with_values(vec![]).unwrap(),
        g.clone(),
    ]);
    let both = both.unwrap();
    assert_eq!((both.rows(), both.cols(), both.neighbours(4), both.degree(3)), (7, 8, &[6][..], 0));
    assert!(Adjacency::block_diagonal(&[g.clone(), g.without_values()]).is_err());
    assert_eq!(Adjacency::block_diagonal(&[]).unwrap(), Adjacency::empty(0, 0).unwrap());
}

#[test]
fn degrees_below_one_count_as_one() {
    // Node 2 has no edge; node 0 has in-degree 2, its sources 0 and 1 have out-degrees 2 and 1.
    let g = graph(&[(0, 0), (0, 1), (1, 0)], 3);
    let symmetric = g.normalised(Normalisation::Symmetric);
    let root = 0.5f32.sqrt();
    assert_eq!(symmetric.values().unwrap(), [0.5, root, root]);
    assert_eq!(g.normalised(Normalisation::RandomWalk).values().unwrap(), [0.5, 0.5, 1.0]);
    let light = Adjacency::from_edges((2, 2), &[(0, 1)], Some(&[0.25])).unwrap();
    assert_eq!(light.normalised(Normalisation::Symmetric).values().unwrap(), [0.25]);
}

#[test]
fn a_graph_on_a_device_is_the_same_in_either_width() {
    let g = graph(&[(0, 2), (1, 0), (1, 2), (2, 1)], 3);
    for (width, dtype) in [(Width::Fitting, DType::I32), (Width::Wide, DType::I64)] {
        let csr = Csr::with_width(&g, &Device::cpu(), width).unwrap();
        assert_eq!((csr.offsets().dtype(), csr.indices().dtype()), (dtype, dtype));
        assert_eq!(csr.to_host().unwrap(), g);
        let turned = csr.transposed().unwrap();
        assert_eq!(counts_of(&turned.offsets), [0, 1, 2, 4]);
        assert_eq!(counts_of(&turned.indices), [1, 2, 0, 1]);
        assert_eq!(counts_of(turned.order.as_ref().unwrap()), [1, 3, 0, 2]);
        // Built once: the same buffer again.
        assert_eq!(csr.clone().transposed().unwrap().offsets.buffer().id(), turned.offsets.buffer().id());
        let again = Csr::from_tensors(3, csr.offsets().clone(), csr.indices().clone(), None).unwrap();
        assert_eq!(again.to_host().unwrap(), g);
        let values = Tensor::from_slice(&Device::cpu(), &[4], &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        assert!(csr.with_values(values).unwrap().without_values().values().is_none());
        assert!(csr.with_values(Tensor::zeros(&Device::cpu(), &[3], DType::F32).unwrap()).is_err());
    }
}

#[test]
fn indices_are_as_wide_as_the_graph_asks() {
    let most = i32::MAX as usize;
    for (width, largest, dtype) in [
        (Width::Fitting, 0, DType::I32),
        (Width::Fitting, most, DType::I32),
        (Width::Fitting, most + 1, DType::I64),
        (Width::Fitting, 1 << 40, DType::I64),
        (Width::Wide, 0, DType::I64),
    ] {
        assert_eq!(width.dtype(largest), dtype);
    }
}

fn counts_of(tensor: &Tensor) -> Vec<usize> {
    let ints = HeldInts::of("test", tensor).unwrap();
    (0..tensor.numel()).map(|i| ints.values().at(i)).collect()
}
