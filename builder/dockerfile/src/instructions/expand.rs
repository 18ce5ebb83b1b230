//! Variables in the arguments of an instruction.

use std::borrow::Cow;

use super::{Add, Arg, ArgDeclaration, Copy, Env, InlineFile, Instruction, KeyValue, Label, Transfer};
use super::{StopSignal, User, Volume, Workdir};
use crate::shell::WordError;

/// How the words of an instruction get their values. Both are asked in the order of the text, so that the caller can note what was used.
pub struct Expanders<'a> {
    /// For arguments: quotes and escapes are removed ([`Lexer::new`](crate::shell::Lexer::new)).
    pub word: &'a mut dyn FnMut(&str) -> Result<String, WordError>,
    /// For heredoc files: only variables ([`Lexer::for_heredoc`](crate::shell::Lexer::for_heredoc)).
    pub heredoc: &'a mut dyn FnMut(&str) -> Result<String, WordError>,
}

impl Instruction {
    /// The instruction with its variables expanded, where the language expands them at all.
    ///
    /// It does not in `CMD`, `ENTRYPOINT`, `HEALTHCHECK`, `MAINTAINER`, `ONBUILD`, `RUN` and `SHELL`, nor in `COPY --from` and `--exclude`.
    /// What it leaves as it is, is borrowed. `RUN --mount` has [`MountSpec::resolve`](super::MountSpec::resolve).
    /// `EXPOSE` is left as it is: one of its words may become several, which is for [`Lexer::split`](crate::shell::Lexer::split).
    pub fn expand(&self, expanders: &mut Expanders<'_>) -> Result<Cow<'_, Instruction>, WordError> {
        Ok(Cow::Owned(match self {
            Instruction::Add(add) => Instruction::Add(Add {
                chown: expanders.option(&add.chown)?,
                chmod: expanders.option(&add.chmod)?,
                checksum: expanders.option(&add.checksum)?,
                transfer: expanders.transfer(&add.transfer)?,
                ..add.clone()
            }),
            Instruction::Copy(copy) => Instruction::Copy(Copy {
                chown: expanders.option(&copy.chown)?,
                chmod: expanders.option(&copy.chmod)?,
                transfer: expanders.transfer(&copy.transfer)?,
                ..copy.clone()
            }),
            Instruction::Arg(arg) => {
                let declarations =
                    arg.declarations.iter().map(|declaration| expanders.declaration(declaration));
                Instruction::Arg(Arg { declarations: declarations.collect::<Result<_, _>>()? })
            }
            Instruction::Env(env) => Instruction::Env(Env { pairs: expanders.pairs(&env.pairs)? }),
            Instruction::Label(label) => Instruction::Label(Label { pairs: expanders.pairs(&label.pairs)? }),
            Instruction::StopSignal(stop) => {
                Instruction::StopSignal(StopSignal { signal: (expanders.word)(&stop.signal)? })
            }
            Instruction::User(user) => Instruction::User(User { user: (expanders.word)(&user.user)? }),
            Instruction::Volume(volume) => {
                Instruction::Volume(Volume { paths: expanders.words(&volume.paths)? })
            }
            Instruction::Workdir(workdir) => {
                Instruction::Workdir(Workdir { path: (expanders.word)(&workdir.path)? })
            }
            Instruction::Cmd(_)
            | Instruction::Entrypoint(_)
            | Instruction::Expose(_)
            | Instruction::Healthcheck(_)
            | Instruction::Maintainer(_)
            | Instruction::Onbuild(_)
            | Instruction::Run(_)
            | Instruction::Shell(_) => return Ok(Cow::Borrowed(self)),
        }))
    }
}

impl Expanders<'_> {
    fn words(&mut self, words: &[String]) -> Result<Vec<String>, WordError> {
        words.iter().map(|word| (self.word)(word)).collect()
    }

    fn option(&mut self, word: &Option<String>) -> Result<Option<String>, WordError> {
        let value = word.as_deref().map(|word| (self.word)(word)).transpose()?;
        Ok(value.filter(|value| !value.is_empty()))
    }

    fn pairs(&mut self, pairs: &[KeyValue]) -> Result<Vec<KeyValue>, WordError> {
        let mut expand = |pair: &KeyValue| {
            let key = (self.word)(&pair.key)?;
            Ok(KeyValue { key, value: (self.word)(&pair.value)?, style: pair.style })
        };
        pairs.iter().map(&mut expand).collect()
    }

    fn declaration(&mut self, declaration: &ArgDeclaration) -> Result<ArgDeclaration, WordError> {
        let key = (self.word)(&declaration.key)?;
        let value = declaration.value.as_deref().map(|value| (self.word)(value)).transpose()?;
        Ok(ArgDeclaration { key, value, doc_comment: declaration.doc_comment.clone() })
    }

    fn transfer(&mut self, transfer: &Transfer) -> Result<Transfer, WordError> {
        let sources = self.words(&transfer.sources)?;
        let destination = (self.word)(&transfer.destination)?;
        let mut file = |file: &InlineFile| {
            let data = if file.expand { (self.heredoc)(&file.data)? } else { file.data.clone() };
            Ok(InlineFile { data, ..file.clone() })
        };
        let inline_files = transfer.inline_files.iter().map(&mut file).collect::<Result<_, _>>()?;
        Ok(Transfer { sources, inline_files, destination, json: transfer.json })
    }
}
