//! Instructions that exist from sm_90 on.

#[derive(Debug, Clone)]
pub enum Hopper {
    /// `griddepcontrol`: launches run one after another here, so both forms are already satisfied.
    GridDependency,
}
