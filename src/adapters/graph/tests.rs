use super::*;
use crate::autograd::{Grads, Tape, Var};
use crate::dtype::DType;
use crate::graph::{Adjacency, Csr, Normalisation};
use crate::ops::check::{device, on_each_device};
use crate::ops::{CosineOptions, linear};
use crate::tensor::{ParamSet, Tensor};
use crate::testing::normal;

on_each_device! {
    without_edges_a_convolution_is_a_linear_layer_and_on_a_complete_graph_rows_are_the_mean,
    the_golden_sum,
    every_parameter_learns_and_nodes_have_no_order,
    a_prediction_does_not_depend_on_what_else_is_asked,
    a_query_reads_as_a_node_does,
}

fn tensor(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_slice(&device(), dims, &normal(name, dims.iter().product())).unwrap()
}

fn build(params: ParamSetBuilder) -> ParamSet {
    params.build(&device(), DType::F32, 0).unwrap()
}

fn csr(g: &Adjacency) -> Csr {
    Csr::new(&g.normalised(Normalisation::Symmetric), &device()).unwrap()
}

fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
}

fn without_edges_a_convolution_is_a_linear_layer_and_on_a_complete_graph_rows_are_the_mean() {
    for (k, n) in [(6, 3), (3, 6)] {
        let mut params = ParamSetBuilder::new();
        let conv = GraphConv::declare(&mut params, "c", k, n, 0).unwrap();
        let params = build(params);
        params.set(params.find("c.bias").unwrap(), &normal("bias", n)).unwrap();
        let mut tape = Tape::inference(&params);
        let x = Var::constant(tensor("x", &[5, k]));
        let dense = |tape: &mut Tape| {
            let [w, b] = ["c.weight", "c.bias"].map(|name| tape.param(params.find(name).unwrap()).unwrap());
            linear(tape, &x, &w, Some(&b)).unwrap().tensor().to_f32_vec().unwrap()
        };
        let want = dense(&mut tape);
        let alone = csr(&Adjacency::empty(5, 5).unwrap().with_self_loops().unwrap());
        close(&conv.forward(&mut tape, &alone, &x).unwrap().tensor().to_f32_vec().unwrap(), &want);
        let full: Vec<(usize, usize)> = (0..25).map(|e| (e / 5, e % 5)).collect();
        let full = csr(&Adjacency::from_edges((5, 5), &full, None).unwrap());
        assert_eq!(conv.aggregates_first(&full), k < n);
        let mean: Vec<f32> = (0..n).map(|c| (0..5).map(|i| want[i * n + c]).sum::<f32>() / 5.0).collect();
        close(&conv.forward(&mut tape, &full, &x).unwrap().tensor().to_f32_vec().unwrap(), &mean.repeat(5));
    }
}

fn the_golden_sum() {
    let x = Tensor::from_slice(&device(), &[4, 2], &[1.0f32, 0.0, 0.8, 0.6, 0.0, 1.0, -1.0, 0.0]).unwrap();
    let reference = Reference::new(x.clone(), CosineOptions::default()).unwrap();
    assert_eq!(reference.edges(), 2);
    let graph = reference.graph().unwrap();
    let half = graph.to_host().unwrap().to_dense();
    close(&half[..8], &[0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0]);
    let mut tape = Tape::inference(&ParamSet::none(&device(), DType::F32).unwrap());
    let y = crate::ops::spmm(&mut tape, &graph, &Var::constant(x), None, crate::ops::Reduce::Sum).unwrap();
    close(&y.tensor().to_f32_vec().unwrap(), &[0.9, 0.3, 0.9, 0.3, 0.0, 1.0, -1.0, 0.0]);
}

/// Networks of every kind: with attention, gate, and bare as published.
fn configs() -> [GaNetConfig; 4] {
    let base = GaNetConfig { hidden: 4, ..GaNetConfig::new(6, 3) };
    [
        base.clone(),
        GaNetConfig { activation: None, residual: false, ..base.clone() },
        GaNetConfig { fusion: Fusion::Gate { width: 5 }, ..base.clone() },
        GaNetConfig { heads: Some(2), ..base },
    ]
}

fn every_parameter_learns_and_nodes_have_no_order() {
    let x = tensor("features", &[12, 6]);
    let rows = x.to_f32_vec().unwrap();
    let order = [3, 7, 0, 11, 5, 1, 10, 2, 8, 4, 9, 6];
    let turned: Vec<f32> = order.iter().flat_map(|&i| rows[i * 6..(i + 1) * 6].to_vec()).collect();
    let turned = Tensor::from_slice(&device(), &[12, 6], &turned).unwrap();
    let options = CosineOptions { threshold: 0.1, ..CosineOptions::default() };
    for config in configs() {
        let mut params = ParamSetBuilder::new();
        let net = GaNet::declare(&mut params, &config).unwrap();
        let params = build(params);
        let run = |x: &Tensor| {
            let graph = Reference::new(x.clone(), options).unwrap().graph().unwrap();
            let mut tape = Tape::deterministic(&params);
            let y = net.forward(&mut tape, &graph, &Var::constant(x.clone())).unwrap();
            let mut grads = Grads::zeros(&params).unwrap();
            let out = y.tensor().to_f32_vec().unwrap();
            tape.backward_with(&y, tensor("dy", &[12, 3]), &mut grads).unwrap();
            (out, grads.audit().unwrap())
        };
        let ((a, audit), (b, _)) = (run(&x), run(&turned));
        audit.require_learning().unwrap();
        let again: Vec<f32> = order.iter().flat_map(|&i| a[i * 3..(i + 1) * 3].to_vec()).collect();
        close(&again, &b);
    }
    let none = GaNetConfig { classes: 0, ..GaNetConfig::new(6, 3) };
    assert!(GaNet::declare(&mut ParamSetBuilder::new(), &none).is_err());
    let heads = GaNetConfig { hidden: 4, heads: Some(3), ..GaNetConfig::new(6, 3) };
    assert!(GaNet::declare(&mut ParamSetBuilder::new(), &heads).is_err());
}

#[test]
fn the_published_size_counts_as_published() {
    let paper = |classes| {
        let config = GaNetConfig { hidden: 512, ..GaNetConfig::new(1536, classes) };
        let mut params = ParamSetBuilder::new();
        GaNet::declare(&mut params, &config).unwrap();
        build(params).numel()
    };
    assert_eq!((paper(37), paper(102), paper(101)), (1_837_568 + 56_869, 1_837_568 + 156_774, 1_837_568 + 155_237));
}

fn a_prediction_does_not_depend_on_what_else_is_asked() {
    let options = CosineOptions { threshold: 0.1, weighted: true, ..CosineOptions::default() };
    let reference = tensor("reference", &[20, 6]);
    let queries = tensor("queries", &[5, 6]);
    let fixed = Reference::new(reference.clone(), options).unwrap();
    for config in configs() {
        let mut params = ParamSetBuilder::new();
        let net = GaNet::declare(&mut params, &config).unwrap();
        let params = build(params);
        let predict = |queries: &Tensor| {
            let graph = fixed.graph_with(queries).unwrap();
            let all = [reference.to_f32_vec().unwrap(), queries.to_f32_vec().unwrap()].concat();
            let all = Tensor::from_slice(&device(), &[20 + queries.rows(), 6], &all).unwrap();
            net.forward(&mut Tape::inference(&params), &graph, &Var::constant(all))
                .unwrap()
                .tensor()
                .to_f32_vec()
                .unwrap()
        };
        let together = predict(&queries);
        for i in 0..5 {
            let alone = predict(&queries.slice(0, i, 1).unwrap().contiguous().unwrap());
            close(&alone[20 * 3..], &together[(20 + i) * 3..(21 + i) * 3]);
            close(&alone[..20 * 3], &together[..20 * 3]);
        }
    }
    assert_eq!(Reference::without_edges(reference).unwrap().graph_with(&queries).unwrap().edges(), 25);
}

/// A query reads with the weights that it would have as one more node, as far as its own edges go.
fn a_query_reads_as_a_node_does() {
    let f = 2;
    // Nodes 0 and 1 look alike, 2 looks like 1 alone; each reads its most similar one. The query looks like 1.
    let nodes = [1.0f32, 0.0, 0.95, 0.3, 0.7, 0.7];
    let of = |values: &[f32]| Tensor::from_slice(&device(), &[values.len() / f, f], values).unwrap();
    let options = CosineOptions { threshold: 0.5, top_k: Some(1), symmetric: false, weighted: false };
    let reference = Reference::new(of(&nodes), options).unwrap();
    let graph = reference.graph_with(&of(&[0.9, 0.35])).unwrap().to_host().unwrap();
    // Two edges and its own leave node 1; one and its own arrive at the query.
    assert_eq!(graph.neighbours(3), [1, 3]);
    let own = reference.graph().unwrap().to_host().unwrap();
    assert_eq!((own.neighbours(0), own.neighbours(1), own.neighbours(2)), (&[0, 1][..], &[0, 1][..], &[1, 2][..]));
    close(&graph.values().unwrap()[own.edges()..], &[1.0 / 6f32.sqrt(), 0.5]);
    close(&graph.values().unwrap()[..own.edges()], own.values().unwrap());
}
