//! What the product of similarities does, counted by the emulator. Sums over edges are held against their plans in their own tests.
#![cfg(feature = "emulator")]

use graftwork::ops::{CosineOptions, cosine_graph};
use graftwork::testing::normal;
use graftwork::{Device, Tensor};

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn the_product_of_similarities_rides_tensor_cores_without_bank_conflicts() {
    for f in [16, 128] {
        let device = Device::emulated("sm_80").unwrap();
        // Three tiles of 128 rows: six of the nine products.
        let x = Tensor::from_slice(&device, &[384, f], &normal("x", 384 * f)).unwrap();
        let options = CosineOptions { threshold: 1.0, ..CosineOptions::default() };
        cosine_graph(&x, &options).unwrap();
        let counted = device.take_counters().unwrap();
        let (_, pairs) = counted.iter().find(|(k, _)| k.symbol().starts_with("cosine_graph_pairs")).unwrap();
        // Steps of 32 columns.
        assert_eq!(pairs.tensor_macs, 6 * 128 * 128 * f.next_multiple_of(32) as u64);
        // Each tile reads two panels of rows in f16, once.
        assert_eq!(pairs.load_sectors, 6 * 2 * 128 * (f as u64 * 2 / 32));
        assert_eq!((pairs.bank_conflicts, pairs.local_accesses, pairs.store_sectors), (0, 0, 0));
    }
}
