//! A way to go on with a model.

/// What becomes of the model, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// Its name in tables.
    pub name: &'static str,
    /// Its name in files.
    pub key: &'static str,
    /// Whether routers choose; otherwise all of it is active, a dense model.
    pub routed: bool,
    /// The new neurons of each new expert that it grows by at half of the steps, 0 where children share; `None`: it does not grow.
    pub new_neurons: Option<usize>,
    /// Whether its routers are fitted anew at three quarters.
    pub fitted: bool,
}

impl Arm {
    /// All of them, where new experts bring `new_neurons` each, and a dense model of about the same operations grows by `equal`. Each stands
    /// behind those that it begins with.
    #[must_use]
    pub fn all(new_neurons: usize, equal: usize) -> [Self; 8] {
        let arm = |name, key, routed, new_neurons, fitted| Self { name, key, routed, new_neurons, fitted };
        [
            arm("no growth", "none", true, None, false),
            arm("no growth, routers fitted anew", "none-fitted", true, None, true),
            arm("children share, routers fitted anew", "shared-fitted", true, Some(0), true),
            arm("new neurons, which ride", "wider", true, Some(new_neurons), false),
            arm("new neurons, routers fitted anew", "wider-fitted", true, Some(new_neurons), true),
            arm("dense, no growth", "dense", false, None, false),
            arm("dense, to equal operations", "dense-equal", false, Some(equal), false),
            arm("dense, as much wider", "dense-wider", false, Some(new_neurons), false),
        ]
    }
}
