//! Adapters without a gate: bottlenecks as published by five papers, and scales of columns.

use graftwork::Result;
use graftwork::adapters::{AdapterConfig, CompacterConfig, Ia3Config, SsfConfig, Trunk, parse_targets};
use graftwork::tensor::ParamSetBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, open, to_value, told};
use crate::finetune::options::{Read, WIDTH, modules, refused, size};

pub const ADAPTER: Entry = Entry {
    name: "adapter",
    about: "Bottlenecks after or beside sub-layers",
    reads: &[Read::always(&["adapter", "reduction"])],
    settings: |o, _| Adapter::from(&o.adapter),
    open: open::<Adapter>,
};

pub const VL_ADAPTER: Entry = Entry {
    name: "vl-adapter",
    about: "VL-Adapter's bottlenecks, one set for all tasks",
    reads: &[Read::always(&["reduction"])],
    settings: |o, _| to_value(&Adapter { adapter: "vl-adapter".into(), reduction: o.adapter.reduction }),
    open: open::<Adapter>,
};

pub const COMPACTER: Entry = Entry {
    name: "compacter",
    about: "Bottlenecks whose weights are sums of Kronecker products with a shared factor",
    reads: &[Read::always(&["reduction", "products", "product_rank"])],
    settings: |o, _| Compacter::from(&o.adapter),
    open: open::<Compacter>,
};

pub const IA3: Entry = Entry {
    name: "ia3",
    about: "Scales of keys, values and the feed-forward's inner features",
    reads: &[Read::always(&["ia3_targets"])],
    settings: |o, _| {
        let scaled = Ia3 { ia3_targets: o.adapter.ia3_targets.clone() };
        scaled.config()?;
        to_value(&scaled)
    },
    open: open::<Ia3>,
};

pub const SSF: Entry = Entry {
    name: "ssf",
    about: "Scales and shifts of every linear's output",
    reads: &[],
    settings: |_, _| to_value(&Ssf {}),
    open: open::<Ssf>,
};

#[derive(clap::Args)]
pub struct AdapterOptions {
    /// Whose bottlenecks: houlsby, pfeiffer, parallel or vl-adapter
    #[arg(long, default_value = "houlsby", value_parser = ["houlsby", "pfeiffer", "parallel", "vl-adapter"])]
    pub adapter: String,
    /// Width of the trunk over that of the bottleneck [default: as published]
    #[arg(long, value_parser = size(1..=WIDTH))]
    pub reduction: Option<usize>,
    /// Kronecker products that a weight of compacter is the sum of; they divide the trunk's width
    #[arg(long, default_value_t = 4, value_parser = size(1..=64))]
    pub products: usize,
    /// Rank of each product's second factor
    #[arg(long, default_value_t = 1, value_parser = size(1..=WIDTH))]
    pub product_rank: usize,
    /// Linears that (IA)³ scales; fc2 at its input
    #[arg(long, default_value = "k_proj,v_proj,fc2", value_parser = modules)]
    pub ia3_targets: String,
}

#[derive(Serialize, Deserialize)]
struct Adapter {
    adapter: String,
    reduction: Option<usize>,
}

impl Adapter {
    fn from(options: &AdapterOptions) -> Result<Value> {
        let adapter = Adapter { adapter: options.adapter.clone(), reduction: options.reduction };
        adapter.config()?;
        to_value(&adapter)
    }

    fn config(&self) -> Result<AdapterConfig> {
        let published = match self.adapter.as_str() {
            "houlsby" => AdapterConfig::houlsby(),
            "pfeiffer" => AdapterConfig::pfeiffer(),
            "parallel" => AdapterConfig::parallel(),
            "vl-adapter" => AdapterConfig::vl_adapter(),
            got => return Err(refused("--adapter", "houlsby, pfeiffer, parallel or vl-adapter", got)),
        };
        Ok(AdapterConfig { reduction: self.reduction.unwrap_or(published.reduction), ..published })
    }
}

impl Method for Adapter {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        Ok(self.config()?.attach(trunk, params)?.to_string())
    }

    fn note(&self) -> String {
        match self.reduction {
            Some(reduction) => format!("{} 1/{reduction}", self.adapter),
            None => self.adapter.clone(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Compacter {
    reduction: Option<usize>,
    products: usize,
    product_rank: usize,
}

impl Compacter {
    fn from(options: &AdapterOptions) -> Result<Value> {
        let AdapterOptions { reduction, products, product_rank, .. } = *options;
        to_value(&Compacter { reduction, products, product_rank })
    }
}

impl Method for Compacter {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        let published = CompacterConfig::default();
        let reduction = self.reduction.unwrap_or(published.reduction);
        let config = CompacterConfig { reduction, products: self.products, rank: self.product_rank, ..published };
        Ok(config.attach(trunk, params)?.to_string())
    }

    fn note(&self) -> String {
        format!("{} products r={}", self.products, self.product_rank)
    }
}

#[derive(Serialize, Deserialize)]
struct Ia3 {
    ia3_targets: String,
}

impl Ia3 {
    fn config(&self) -> Result<Ia3Config> {
        Ok(Ia3Config { targets: parse_targets(&self.ia3_targets)?, ..Ia3Config::default() })
    }
}

impl Method for Ia3 {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        told(self.config()?.attach(trunk, params)?)
    }

    fn note(&self) -> String {
        self.ia3_targets.clone()
    }

    fn picks_by(&self) -> &'static str {
        "ia3-targets"
    }
}

#[derive(Serialize, Deserialize)]
struct Ssf {}

impl Method for Ssf {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        Ok(SsfConfig::default().attach(trunk, params)?.to_string())
    }

    fn note(&self) -> String {
        "all linears".into()
    }
}
