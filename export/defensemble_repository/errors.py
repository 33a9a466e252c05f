"""Every exception of the packages. The classes of this package are defined below.

    RepositoryError (Exception)                 defensemble_repository.errors: a model repository, or a request to change it, is invalid
    ├── ConfigError                             a `config.pbtxt` is missing, is invalid, or contradicts the files around it
    ├── EnsembleError (ValueError)              a name, member, weight or average is not allowed in an ensemble
    ├── LockedError                             another program is changing the repository
    ├── ManifestError                           the manifest of a TensorRT plan is damaged, or has another schema
    └── ExportError                             defensemble_export.errors: an export or an edit cannot be written
        ├── VerificationError                   the outputs of an exported graph differ from those of its source
        ├── DeclarationError                    a YAML file does not declare an ensemble
        ├── HistoryError                        the history of edits is damaged, or has a newer schema
        ├── ProfileError                        a serving profile cannot be written or removed
        ├── EngineError                         a TensorRT plan cannot be built, or its outputs differ from those of its graph
        └── ExistsError                         the repository already contains what an export would add

    DefensembleError (Exception)                defensemble: any error of the client
    ├── InputError (ValueError)                 an argument is wrong; nothing was sent
    ├── OutputNotRequestedError                 a prediction does not contain an output that was not requested
    ├── ClientClosedError                       the client was closed before the call
    ├── MissingExtraError (ImportError)         an optional part of the distribution is not installed
    ├── WorkerEndedError                        a worker process of a probe ended, such as for lack of memory
    ├── EditRefusedError (ValueError)           the checks found errors; nothing was written
    ├── EditOvertakenError                      another program changed a file during the edit
    ├── EditFailedError                         a step of an edit failed; the previous state was restored
    └── ServiceError                            the connection or the server failed
        ├── RetriesExhaustedError               each attempt of a call failed
        ├── ConnectionFailedError               there is no connection, or it was lost during the call
        ├── DeadlineExceededError (TimeoutError)  the server did not answer in time
        ├── NotReadyError                       the model is loading, or its queue is full
        ├── ForbiddenError                      the server does not allow this client to do this
        ├── ModelNotFoundError                  the server has no such model
        ├── RequestRefusedError                 the server rejects the request as invalid
        └── ServerFailedError                   the server failed, or its response is not valid

    ServerError (Exception)                     defensemble_server.errors: a repository cannot be served
    ├── RuntimeMissingError                     Triton, ONNX Runtime or a suitable glibc is missing
    ├── BackendBuildError                       the native backend cannot be compiled
    ├── NotServableError                        no model of the repository can be served as it is on disk
    ├── PlanError                               a TensorRT plan cannot be checked
    ├── PortError                               a port is taken, or the address is not allowed
    ├── StartError                              Triton did not start, or gave wrong answers
    │   └── CrashError                          Triton crashed while it started
    └── StateError                              there is no such running server

    BuildError (Exception)                      defensemble_ops.errors: the operator library cannot be compiled

    TrainingError (Exception)                   defensemble_training.errors: a training run cannot start, continue or resume
    ├── DivergedError                           the loss or a weight is not finite
    ├── Interrupted                             SIGINT ended the run
    ├── SpecError (ValueError)                  a hyper-parameter is out of range
    ├── DataError                               a dataset is missing or cannot be read
    ├── CheckpointError                         a checkpoint is missing, damaged or inconsistent
    └── ExamplesError                           a file of adversarial examples is missing, damaged, or of other images

    ImagesError (ValueError)                    defensemble_images.errors: image files or their folders are invalid
    ├── DamagedImageError                       an image cannot be decoded, or is too large
    ├── ImageSizeError                          an image does not have the size of the network, and no resize rule is known
    ├── MemoryLimitError                        the images need more memory than is allowed
    └── ClassNamesError                         class names are repeated, or do not match those of the model

    UserWarning
    ├── DatasetMismatchWarning                  defensemble_export.errors: verification uses other images than the training data
    └── UncheckedContentWarning                 defensemble_training.errors: a file of an older version has no digest of its content

Errors of the operating system stay an `OSError` that names the file. Every class pickles.
"""

from __future__ import annotations


class RepositoryError(Exception):
    """A model repository is invalid, or cannot be changed as requested.

    The text states what is wrong, the value found, the value expected and how to fix it.

    Example:
        >>> from pathlib import Path
        >>> from defensemble_repository.reader import read_ensemble
        >>> try:
        ...     read_ensemble(Path("model_repository"), "ensemble")
        ... except RepositoryError as error:
        ...     print(error)
    """


class ConfigError(RepositoryError):
    """A `config.pbtxt` is missing, is invalid, or contradicts the files around it."""


class EnsembleError(RepositoryError, ValueError):
    """A name, member, weight or average is not allowed in an ensemble."""


class LockedError(RepositoryError):
    """Another program is changing the repository, or left an edit unfinished."""


class ManifestError(RepositoryError):
    """The manifest of a TensorRT plan is damaged, or has another schema."""
