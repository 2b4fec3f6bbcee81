use super::*;
use crate::device::Device;
use crate::graph::Adjacency;
use crate::ops::check::{STORED, device, draw, draw_integers, on_each_device};

on_each_device! {
    the_golden_graph,
    a_similarity_equal_to_the_threshold_is_no_edge,
    the_edges_are_those_of_the_definition_on_every_device,
    the_most_similar_are_kept_and_their_reverses_added,
    a_reference_is_looked_up_as_a_part_of_the_whole,
    lengths_do_not_matter_and_zero_rows_have_no_edges,
    bad_input_is_named,
    little_room_changes_nothing,
    pairs_that_f16_cannot_tell_apart_are_decided_exactly,
}

fn options(threshold: f64) -> CosineOptions {
    CosineOptions { threshold, ..CosineOptions::default() }
}

fn cosine(x: &[f64], f: usize, i: usize, j: usize) -> f32 {
    let dot = |i: usize, j: usize| (0..f).map(|c| x[i * f + c] * x[j * f + c]).sum::<f64>();
    (dot(i, j) / (dot(i, i) * dot(j, j)).sqrt()) as f32
}

/// Every pair by the definition.
fn by_definition(x: &[f64], f: usize, threshold: f64, weighted: bool) -> Adjacency {
    let n = x.len() / f;
    let (mut edges, mut values) = (Vec::new(), Vec::new());
    for i in 0..n {
        for j in (0..n).filter(|&j| j != i) {
            let s = cosine(x, f, i, j);
            if s > threshold as f32 {
                edges.push((i, j));
                values.push(s);
            }
        }
    }
    Adjacency::from_edges((n, n), &edges, weighted.then_some(&values)).unwrap()
}

fn the_golden_graph() {
    let x = [1.0f32, 0.0, 0.8, 0.6, 0.0, 1.0, -1.0, 0.0];
    let device = device();
    let x = Tensor::from_slice(&device, &[4, 2], &x).unwrap();
    let graph = cosine_graph(&x, &options(0.7)).unwrap().to_host().unwrap();
    assert_eq!(graph, Adjacency::from_edges((4, 4), &[(0, 1), (1, 0)], None).unwrap());
}

fn a_similarity_equal_to_the_threshold_is_no_edge() {
    // Cosines 4/5 and 3/5, exactly.
    let x = [4.0f32, 3.0, 1.0, 0.0, 0.0, 2.0];
    let device = device();
    let x = Tensor::from_slice(&device, &[3, 2], &x).unwrap();
    let edges = |threshold: f64| cosine_graph(&x, &options(threshold)).unwrap().edges();
    assert_eq!((edges(0.8), edges(f64::from(0.8f32.next_down())), edges(0.6), edges(0.0)), (0, 2, 2, 4));
    // The product of orthogonal rows is 0, not above it; every direction is above -1.
    assert_eq!(edges(-0.01), 6);
}

fn the_edges_are_those_of_the_definition_on_every_device() {
    let device = device();
    for (n, f) in [(1, 3), (7, 1), (65, 5), (130, 33), (200, 20), (30, 600)] {
        for dtype in STORED {
            // Integers meet thresholds exactly, and draws do not.
            let integers = draw_integers("x", &[n, f], 1, dtype);
            for (x, values) in [integers, draw("x", &[n, f], dtype)] {
                for threshold in [-0.5, 0.0, 0.25, 0.5, 0.7] {
                    for weighted in [false, true] {
                        let got = cosine_graph(&x, &CosineOptions { weighted, ..options(threshold) }).unwrap();
                        let want = by_definition(&values, f, threshold, weighted);
                        let place = format!("{} {n} {f} {dtype} {threshold}", device.name());
                        assert_eq!(got.to_host().unwrap(), want, "{place}");
                        assert_eq!((got.is_simple(), got.max_degree()), (true, want.max_degree()));
                    }
                }
            }
        }
    }
}

fn the_most_similar_are_kept_and_their_reverses_added() {
    let device = device();
    let (x, values) = draw_integers("x", &[40, 3], 1, DType::F32);
    let all = by_definition(&values, 3, 0.2, true);
    let some = CosineOptions { top_k: Some(3), symmetric: false, weighted: true, ..options(0.2) };
    let got = cosine_graph(&x, &some).unwrap().to_host().unwrap();
    for i in 0..40 {
        let mut row: Vec<(usize, f32)> =
            (all.offsets()[i]..all.offsets()[i + 1]).map(|e| (all.indices()[e], all.value(e))).collect();
        row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        row.truncate(3);
        row.sort_by_key(|r| r.0);
        assert_eq!(got.neighbours(i), row.iter().map(|r| r.0).collect::<Vec<_>>(), "{} {i}", device.name());
    }
    let both = cosine_graph(&x, &CosineOptions { symmetric: true, ..some }).unwrap().to_host().unwrap();
    assert_eq!(both, got.symmetric().unwrap());
}

fn a_reference_is_looked_up_as_a_part_of_the_whole() {
    let (x, values) = draw("x", &[90, 6], DType::F32);
    let whole = by_definition(&values, 6, 0.3, false);
    let (queries, reference) = (x.slice(0, 0, 20).unwrap(), x.slice(0, 20, 70).unwrap());
    let on = |t: &Tensor| t.contiguous().unwrap();
    let got = cosine_graph_between(&on(&queries), &on(&reference), &options(0.3)).unwrap();
    assert_eq!((got.rows(), got.cols()), (20, 70));
    let got = got.to_host().unwrap();
    for i in 0..20 {
        let want: Vec<usize> = whole.neighbours(i).iter().filter(|&&j| j >= 20).map(|j| j - 20).collect();
        assert_eq!(got.neighbours(i), want);
    }
}

fn lengths_do_not_matter_and_zero_rows_have_no_edges() {
    let device = device();
    for size in [1e-30f32, 1e-22, 1.0, 1e18, 3e38] {
        let x = [size, 0.0, size, size * 0.1, 0.0, 0.0];
        let x = Tensor::from_slice(&device, &[3, 2], &x).unwrap();
        for threshold in [-1.0, 0.9] {
            assert_eq!(cosine_graph(&x, &options(threshold)).unwrap().edges(), 2, "{size} on {}", device.name());
        }
    }
    for dims in [[0, 4], [3, 0], [1, 2]] {
        let none = Tensor::zeros(&device, &dims, DType::F32).unwrap();
        let graph = cosine_graph(&none, &options(-1.0)).unwrap();
        assert_eq!((graph.rows(), graph.edges()), (dims[0], 0));
    }
}

fn bad_input_is_named() {
    let device = device();
    for bad in [f32::NAN, f32::INFINITY] {
        let x = Tensor::from_slice(&device, &[2, 2], &[1.0f32, 2.0, bad, 0.0]).unwrap();
        let text = cosine_graph(&x, &options(0.7)).unwrap_err().to_string();
        assert!(text.contains("`features`") && text.contains("row 1"), "{text}");
        let good = Tensor::from_slice(&device, &[1, 2], &[1.0f32, 2.0]).unwrap();
        let text = cosine_graph_between(&good, &x, &options(0.7)).unwrap_err().to_string();
        assert!(text.contains("`reference`"), "{text}");
    }
    let x = Tensor::zeros(&Device::cpu(), &[2, 2], DType::F32).unwrap();
    for threshold in [-1.1, 1.5, f64::NAN] {
        assert!(matches!(cosine_graph(&x, &options(threshold)), Err(Error::Value { argument: "threshold", .. })));
    }
    let none = CosineOptions { top_k: Some(0), ..options(0.5) };
    assert!(matches!(cosine_graph(&x, &none), Err(Error::Value { argument: "top_k", .. })));
    let flat = x.reshape(&[4]).unwrap();
    assert!(matches!(cosine_graph(&flat, &options(0.5)), Err(Error::Shape { argument: "features", .. })));
    let other = Tensor::zeros(&Device::cpu(), &[2, 3], DType::F32).unwrap();
    assert!(matches!(cosine_graph_between(&x, &other, &options(0.5)), Err(Error::Shape { .. })));
}

/// A list too short for the pairs, and copies of a few rows at a time, find what one launch finds.
fn little_room_changes_nothing() {
    let within = |desc: &Desc, a: &Tensor, b: &Tensor, room: gpu::Room| {
        let made = if a.device().is_cpu() {
            cpu::graph_within::<f32>(desc, a, b, room.pairs)
        } else {
            gpu::graph_within(desc, a, b, &room)
        };
        made.unwrap().to_host().unwrap()
    };
    let (x, values) = draw("x", &[300, 12], DType::F32);
    let queries = x.slice(0, 40, 200).unwrap();
    let whole = by_definition(&values, 12, 0.25, false);
    let with_values = by_definition(&values, 12, 0.25, true);
    for pairs in [0, 5, 1 << 20] {
        for panel in [128, 256, 384] {
            let weighted = CosineOptions { weighted: true, ..options(0.25) };
            for (options, whole) in [(options(0.25), &whole), (weighted, &with_values)] {
                let desc = Desc::new(&x, None, &options).unwrap();
                assert_eq!(within(&desc, &x, &x, gpu::Room { pairs, panel }), *whole, "{pairs} {panel}");
            }
            let desc = Desc::new(&queries, Some(&x), &options(0.25)).unwrap();
            let got = within(&desc, &queries, &x, gpu::Room { pairs, panel });
            for i in 0..200 {
                // Between a row and itself there is an edge here.
                let mut want = whole.neighbours(40 + i).to_vec();
                want.insert(want.partition_point(|&j| j < 40 + i), 40 + i);
                assert_eq!(got.neighbours(i), want, "{pairs} {panel} {i}");
            }
        }
    }
}

/// Similarities about as far from the threshold as f16 can tell, on both sides of it: what the tensor cores cannot decide is decided again.
fn pairs_that_f16_cannot_tell_apart_are_decided_exactly() {
    let f = 24;
    let steps: Vec<f32> = (-40..=40).map(|k| k as f32 * 3e-5).collect();
    let mut values = vec![0.0f32; f];
    values[0] = 1.0;
    for &step in &steps {
        let cosine = 0.7 + step;
        let mut row = vec![((1.0 - cosine * cosine) / (f - 1) as f32).sqrt(); f];
        row[0] = cosine;
        values.extend(row);
    }
    let wide: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let x = Tensor::from_slice(&device(), &[values.len() / f, f], &values).unwrap();
    let got = cosine_graph(&x, &options(0.7)).unwrap().to_host().unwrap();
    let want = by_definition(&wide, f, 0.7, false);
    assert!(want.degree(0) > 30 && want.degree(0) < 50);
    assert_eq!(got, want);
}

/// Errors of the product of f16 copies, measured over many pairs, stay well within the band.
#[test]
fn the_band_covers_what_f16_loses() {
    for f in [1, 7, 64, 1000] {
        let values = crate::testing::normal("rows", 60 * f);
        let unit: Vec<Vec<f64>> = values
            .chunks(f)
            .map(|row| {
                let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                row.iter().map(|&v| f64::from(v) / length).collect()
            })
            .collect();
        let half = |v: f64| f64::from(half::f16::from_f32(v as f32).to_f32());
        for a in &unit {
            for b in &unit {
                let exact: f64 = a.iter().zip(b).map(|(u, v)| u * v).sum();
                let rough: f64 = a.iter().zip(b).map(|(&u, &v)| half(u) * half(v)).sum();
                assert!((exact - rough).abs() < f64::from(gpu::band(f)), "{f}: {exact} {rough}");
            }
        }
    }
}
