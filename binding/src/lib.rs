//! The one narrow door between Python and the engine: start, submit, poll, stop, version. Texts are JSON
//! (`docs/formats/door.md`). Rust never waits for the interpreter, and every call that may wait releases it.

mod nats;

use std::sync::Mutex;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pyo3::create_exception!(
    _engine,
    EngineError,
    PyRuntimeError,
    "The engine refuses; the text says what, where, and what to do."
);

/// A running engine.
#[pyclass(frozen, module = "roostmq._engine")]
struct Engine {
    inner: Mutex<Option<roostmq_engine::port::Engine>>,
}

impl Engine {
    fn with<T>(&self, f: impl FnOnce(&roostmq_engine::port::Engine) -> T) -> PyResult<T> {
        let guard = self.inner.lock().map_err(|_| EngineError::new_err("the engine is broken"))?;
        guard.as_ref().map(f).ok_or_else(|| EngineError::new_err("the engine is stopped"))
    }
}

#[pymethods]
impl Engine {
    /// Binds the listeners and starts the lanes.
    #[staticmethod]
    fn start(py: Python<'_>, settings: &str) -> PyResult<Self> {
        let engine = py
            .detach(|| roostmq_engine::port::Engine::start_with(settings, Some(&nats::open)))
            .map_err(EngineError::new_err)?;
        Ok(Self { inner: Mutex::new(Some(engine)) })
    }

    /// Hands over a JSON array of commands.
    fn submit(&self, commands: &str) -> PyResult<()> {
        self.with(|e| e.submit(commands))?.map_err(EngineError::new_err)
    }

    /// Takes events as a JSON array.
    fn poll(&self) -> PyResult<String> {
        self.with(roostmq_engine::port::Engine::poll)
    }

    /// Readable while there are events.
    #[getter]
    fn fd(&self) -> PyResult<i32> {
        self.with(roostmq_engine::port::Engine::fd)
    }

    /// Waits until the lanes have ended by themselves after the command `stop`.
    fn wait(&self, py: Python<'_>, at_most_ms: u64) -> PyResult<bool> {
        py.detach(|| self.with(|e| e.wait(Duration::from_millis(at_most_ms))))
    }

    /// Ends every lane; a second call does nothing.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let taken = self.inner.lock().map(|mut inner| inner.take());
            drop(taken.map_err(|_| EngineError::new_err("the engine is broken"))?);
            Ok(())
        })
    }
}

/// A load on a broker, which runs on threads of its own.
#[pyclass(frozen, module = "roostmq._engine")]
struct Load(roostmq_load::Load);

#[pymethods]
impl Load {
    /// Begins what a plan says.
    #[staticmethod]
    fn start(plan: &str) -> PyResult<Self> {
        roostmq_load::Load::start(plan).map(Self).map_err(EngineError::new_err)
    }

    /// How far it is, as JSON.
    fn progress(&self) -> String {
        self.0.progress()
    }

    /// Waits for the report, JSON; None if it is not there in time.
    fn result(&self, py: Python<'_>, at_most_ms: u64) -> PyResult<Option<String>> {
        py.detach(|| self.0.result(Duration::from_millis(at_most_ms))).transpose().map_err(EngineError::new_err)
    }

    /// Asks it to end soon and report what it has.
    fn stop(&self) {
        self.0.stop();
    }
}

/// Version of the engine.
#[pyfunction]
const fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// `$argon2id$...` of a password.
#[pyfunction]
fn hash_password(py: Python<'_>, password: &str) -> PyResult<String> {
    let hash = py.detach(|| roostmq_engine::access::hash_password(password));
    hash.map_err(|e| EngineError::new_err(e.to_string()))
}

/// Does the password belong to the hash?
#[pyfunction]
fn check_password(py: Python<'_>, password: &str, hash: &str) -> PyResult<bool> {
    let known = py.detach(|| roostmq_engine::access::check_password(password.as_bytes(), hash));
    known.map_err(|e| EngineError::new_err(e.to_string()))
}

/// What is in a data directory that no broker uses, as JSON.
#[pyfunction]
fn data_inspect(py: Python<'_>, dir: &str) -> PyResult<String> {
    py.detach(|| roostmq_engine::port::inspect(dir)).map_err(EngineError::new_err)
}

/// Reads everything in a data directory; what is damaged, as JSON.
#[pyfunction]
fn data_verify(py: Python<'_>, dir: &str) -> PyResult<String> {
    py.detach(|| roostmq_engine::port::verify(dir)).map_err(EngineError::new_err)
}

/// Writes a data directory that no broker uses to a new file; the numbers, as JSON.
#[pyfunction]
fn data_export(py: Python<'_>, dir: &str, file: &str) -> PyResult<String> {
    py.detach(|| roostmq_engine::port::export(dir, file, true)).map_err(EngineError::new_err)
}

/// Fills an empty directory from such a file; the numbers, as JSON.
#[pyfunction]
fn data_import(py: Python<'_>, dir: &str, file: &str) -> PyResult<String> {
    py.detach(|| roostmq_engine::port::import(dir, file)).map_err(EngineError::new_err)
}

/// Fills the empty logs of a cluster from such a file; the numbers, as JSON. `nats`: settings of its NATS, JSON.
#[pyfunction]
fn cluster_import(py: Python<'_>, file: &str, nats: &str) -> PyResult<String> {
    py.detach(|| roostmq_engine::port::import_cluster(file, nats, &nats::open)).map_err(EngineError::new_err)
}

/// The point of each id on the ring of a cluster with this key: 8 bytes each, little-endian.
#[pyfunction]
fn hash_ids(py: Python<'_>, key0: u64, key1: u64, ids: Vec<PyBackedBytes>) -> Bound<'_, PyBytes> {
    let points = py.detach(|| -> Vec<u8> {
        ids.iter().flat_map(|id| roostmq_engine::ring::siphash((key0, key1), id).to_le_bytes()).collect()
    });
    PyBytes::new(py, &points)
}

/// The native module `roostmq._engine`.
#[pymodule]
fn _engine(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("EngineError", m.py().get_type::<EngineError>())?;
    m.add_class::<Engine>()?;
    m.add_class::<Load>()?;
    m.add_function(wrap_pyfunction!(version, m)?)?;
    m.add_function(wrap_pyfunction!(hash_password, m)?)?;
    m.add_function(wrap_pyfunction!(check_password, m)?)?;
    m.add_function(wrap_pyfunction!(hash_ids, m)?)?;
    m.add_function(wrap_pyfunction!(data_inspect, m)?)?;
    m.add_function(wrap_pyfunction!(data_verify, m)?)?;
    m.add_function(wrap_pyfunction!(data_export, m)?)?;
    m.add_function(wrap_pyfunction!(data_import, m)?)?;
    m.add_function(wrap_pyfunction!(cluster_import, m)?)?;
    Ok(())
}
