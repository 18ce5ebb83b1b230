//! Dockerfiles as text.

use lapstrake_builder_dockerfile::{
    LineRange,
    instructions::{Dockerfile, SourceText},
    lint::Config,
    parser::{check_directive, detect_syntax},
};

/// A Dockerfile is understood or refused, its warnings are about lines that it has, and printing what was understood says the same.
pub(crate) fn dockerfile(data: &[u8]) {
    // What stands before the first instruction is looked for in files that may be no Dockerfiles.
    let _ = detect_syntax(data);
    let _ = check_directive(data);
    let Ok(file) = Dockerfile::parse(data) else { return };
    let printed = file.to_string();
    let again = Dockerfile::parse(printed.as_bytes())
        .unwrap_or_else(|error| panic!("{error}\nof what was printed: {printed:?}"));
    assert_eq!(meaning(again), meaning(file), "printed as {printed:?}");
}

/// The tree without what says where and in what case things were written.
fn meaning(mut file: Dockerfile) -> Dockerfile {
    let forget = |source: &mut SourceText| {
        source.keyword.clear();
        source.code.clear();
        source.lines = LineRange::line(1);
    };
    file.meta_args.iter_mut().for_each(|meta| forget(&mut meta.source));
    for stage in &mut file.stages {
        forget(&mut stage.source);
        stage.commands.iter_mut().for_each(|command| forget(&mut command.source));
    }
    file.warnings.clear();
    file.lint = Config::default();
    file
}
