//! What else is low-rank and keeps its form: Dual-LoRA, LoRA-FA, VeRA.

use graftwork::Result;
use graftwork::adapters::{AttachReport, DualLoraConfig, LoraConfig, LoraFaConfig, Trunk, VeraConfig, parse_targets};
use graftwork::tensor::ParamSetBuilder;
use serde::{Deserialize, Serialize};

use super::lora::LoraOptions;
use super::{Entry, Method, Options, open, to_value, told};
use crate::finetune::options::{ABOVE_0, COUNT, Read, number, whole};

pub const DUAL_LORA: Entry = Entry {
    name: "dual-lora",
    about: "Low-rank updates whose ranks each token opens and shuts",
    reads: &[Read::always(&["targets", "rank", "alpha", "dropout"])],
    settings: |o, _| to_value(&DualLora(Shared::from(&o.lora)?)),
    open: open::<DualLora>,
};

pub const LORA_FA: Entry = Entry {
    name: "lora-fa",
    about: "LoRAs whose A is random and frozen: of the input nothing is kept",
    reads: &[Read::always(&["targets", "rank", "alpha", "dropout", "projection_seed"])],
    settings: |o, _| to_value(&LoraFa { shared: Shared::from(&o.lora)?, projection_seed: o.low_rank.projection_seed }),
    open: open::<LoraFa>,
};

pub const VERA: Entry = Entry {
    name: "vera",
    about: "Two random matrices that all linears share, and two vectors each that learn; wants a large --rank",
    reads: &[Read::always(&["targets", "rank", "dropout", "projection_seed", "d_initial"])],
    settings: |o, _| to_value(&Vera::from(o)?),
    open: open::<Vera>,
};

#[derive(clap::Args)]
pub struct LowRankOptions {
    /// Seed of random matrices that do not learn
    #[arg(long, default_value_t = 0, value_parser = whole(0..=COUNT))]
    pub projection_seed: u64,
    /// What VeRA's vector on the ranks starts at
    #[arg(long, default_value_t = 0.1, value_parser = number(ABOVE_0))]
    pub d_initial: f64,
}

/// What these have of a LoRA.
#[derive(Serialize, Deserialize)]
struct Shared {
    rank: usize,
    alpha: f64,
    dropout: f64,
    targets: String,
}

impl Shared {
    fn from(options: &LoraOptions) -> Result<Self> {
        let (rank, alpha, dropout) = (options.rank, options.alpha(), options.dropout);
        let shared = Shared { rank, alpha, dropout, targets: options.targets() };
        shared.config()?;
        Ok(shared)
    }

    fn config(&self) -> Result<LoraConfig> {
        let (rank, alpha, dropout) = (self.rank, self.alpha, self.dropout);
        Ok(LoraConfig { rank, alpha, dropout, targets: parse_targets(&self.targets)?, ..LoraConfig::default() })
    }
}

#[derive(Serialize, Deserialize)]
struct DualLora(Shared);

#[derive(Serialize, Deserialize)]
struct LoraFa {
    #[serde(flatten)]
    shared: Shared,
    projection_seed: u64,
}

#[derive(Serialize, Deserialize)]
struct Vera {
    rank: usize,
    dropout: f64,
    targets: String,
    projection_seed: u64,
    d_initial: f64,
}

impl Vera {
    fn from(options: &Options) -> Result<Self> {
        let (lora, own) = (&options.lora, &options.low_rank);
        let vera = Vera {
            rank: lora.rank,
            dropout: lora.dropout,
            targets: lora.targets(),
            projection_seed: own.projection_seed,
            d_initial: own.d_initial,
        };
        vera.config()?;
        Ok(vera)
    }

    fn config(&self) -> Result<VeraConfig> {
        let Vera { rank, dropout, ref targets, projection_seed: seed, d_initial } = *self;
        Ok(VeraConfig { rank, d_initial, dropout, targets: parse_targets(targets)?, seed })
    }
}

/// A method that is told by its rank, its dropout and how it attaches.
macro_rules! method {
    ($method:ty, $shared:ident => $of:expr, $attach:expr) => {
        impl Method for $method {
            fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
                let attach: fn(&Self, &mut dyn Trunk, &mut ParamSetBuilder) -> Result<AttachReport> = $attach;
                told(attach(self, trunk, params)?)
            }

            fn note(&self) -> String {
                let $shared = self;
                format!("r={}", $of.rank)
            }

            fn is_random(&self) -> bool {
                let $shared = self;
                $of.dropout > 0.0
            }
        }
    };
}

method!(DualLora, own => own.0, |own, trunk, params| DualLoraConfig { lora: own.0.config()? }.attach(trunk, params));
method!(LoraFa, own => own.shared, |own, trunk, params| {
    LoraFaConfig { lora: own.shared.config()?, seed: own.projection_seed }.attach(trunk, params)
});
method!(Vera, own => own, |own, trunk, params| own.config()?.attach(trunk, params));

/// The settings of a method are read back as they were written.
#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn settings_have_the_names_of_options() {
        let shared = || Shared { rank: 4, alpha: 8.0, dropout: 0.5, targets: "q_proj".into() };
        let all: [Value; 2] = [
            to_value(&DualLora(shared())).unwrap(),
            to_value(&LoraFa { shared: shared(), projection_seed: 3 }).unwrap(),
        ];
        for settings in &all {
            assert_eq!((&settings["rank"], &settings["targets"]), (&Value::from(4), &Value::from("q_proj")));
        }
        assert!((DUAL_LORA.open)(&all[0]).unwrap().is_random());
        assert_eq!((LORA_FA.open)(&all[1]).unwrap().note(), "r=4");
    }
}
