(** Theorem F: the chain as it is run. No set, no shrink: [W_{t+1} = W_t + Delta_t] with admissible links, which for matrices
    are those of rank at most r. `matrices.v` has the same for real matrices. *)

From FrankWolfe Require Import setting assumptions lemmas.

(** [cut t] is the truncated gradient [[G_t]_r]: its multiples are links, and [<G_t, [G_t]_r> = |[G_t]_r|^2]. *)
Definition Descent {E : InnerProductSpace} (P : Problem E) (run : Run E) (admissible : E -> Prop) (cut : nat -> E) : Prop :=
  forall t, iteration run t -> (forall a, admissible (a * cut t)%V) /\ ⟨gradient P run t, cut t⟩ = ‖cut t‖².

(** [|G_t|_{F,r}^2] *)
Definition restricted {E : InnerProductSpace} (cut : nat -> E) (t : nat) : R := ‖cut t‖².

(** What a link falls short of one truncated gradient step: [[|G_t|_{F,r}^2/(2 beta) - (L(W_t) - L(W_{t+1}))]^+]. *)
Definition shortfall {E : InnerProductSpace} (P : Problem E) (run : Run E) (cut : nat -> E) (t : nat) : R :=
  Rmax 0 (restricted cut t / (2 * beta P) - fall P run t).

(** Telescoped: for every run on one loss, by the definition of the shortfall alone. *)
Definition telescoped : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (cut : nat -> E),
  (1 <= T run)%nat -> 0 < beta P ->
  Static P ->
  mean (restricted cut) (T run) <= 2 * beta P * (decrease P run / INR (T run) + mean (shortfall P run cut) (T run)).

Definition value (M beta T eps : R) : R := 2 * beta * (M / T + eps).

(** Closed: with [M] in place of the decrease. *)
Definition statement : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (admissible : E -> Prop) (cut : nat -> E) (M : R),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M -> Descent P run admissible cut ->
  Static P -> HoldsEverywhere P -> ChainStep run admissible ->
  mean (restricted cut) (T run) <= value M (beta P) (INR (T run)) (mean (shortfall P run cut) (T run)).

(** [W_t - [G_t]_r/beta] *)
Definition truncated_step {E : InnerProductSpace} (P : Problem E) (run : Run E) (cut : nat -> E) (t : nat) : E :=
  (W run t + (- / beta P) * cut t)%V.

(** Every link is at least as good as the truncated step. *)
Definition Never_worse {E : InnerProductSpace} (P : Problem E) (run : Run E) (cut : nat -> E) : Prop :=
  forall t, iteration run t -> L P t (W run (S t)) <= L P t (truncated_step P run cut t).

(** Every link is the best of all admissible ones. *)
Definition Best_links {E : InnerProductSpace} (P : Problem E) (run : Run E) (admissible : E -> Prop) : Prop :=
  forall t Delta, iteration run t -> admissible Delta -> L P t (W run (S t)) <= L P t (W run t + Delta)%V.

(** Such links fall short of nothing. *)
Definition minimisers : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (admissible : E -> Prop) (cut : nat -> E) (M : R),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M -> Descent P run admissible cut ->
  Static P -> HoldsEverywhere P -> ChainStep run admissible ->
  Never_worse P run cut \/ Best_links P run admissible ->
  (forall t, iteration run t -> shortfall P run cut t = 0) /\
  mean (restricted cut) (T run) <= value M (beta P) (INR (T run)) 0.

(** The mean of the norms themselves. *)
Definition mean_root : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (admissible : E -> Prop) (cut : nat -> E) (M : R),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M -> Descent P run admissible cut ->
  Static P -> HoldsEverywhere P -> ChainStep run admissible ->
  mean (fun t => sqrt (restricted cut t)) (T run)
  <= sqrt (value M (beta P) (INR (T run)) (mean (shortfall P run cut) (T run))).

(** * Proof *)

Section Chain.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E) (admissible : E -> Prop) (cut : nat -> E).

  Hypotheses (some : (1 <= T run)%nat) (bent : 0 < beta P).

  (** ** What is left when the falls are summed *)

  Lemma fall_and_shortfall_are_enough t : restricted cut t <= 2 * beta P * (fall P run t + shortfall P run cut t).
  Proof.
    (* |G_t|_{F,r}^2/(2 beta) - fall_t <= eps_t *)
    pose proof (Rmax_r 0 (restricted cut t / (2 * beta P) - fall P run t)) as short. fold (shortfall P run cut t) in short.
    replace (restricted cut t) with (2 * beta P * (restricted cut t / (2 * beta P))) at 1 by (field; lra).
    apply Rmult_le_compat_l; lra.
  Qed.

  Lemma summed : Static P ->
    mean (restricted cut) (T run) <= 2 * beta P * (decrease P run / INR (T run) + mean (shortfall P run cut) (T run)).
  Proof.
    intros static. pose proof (horizon_positive _ some). apply mean_le; [assumption |].
    eapply Rle_trans; [apply sum_le; intros t _; apply fall_and_shortfall_are_enough |].
    rewrite sum_scale, sum_plus, (falls_add_up P run static), (sum_is_mean (shortfall P run cut)) by assumption.
    apply Req_le. field; lra.
  Qed.

  Lemma summed_and_closed M : Static P -> HoldsEverywhere P -> Initial_gap P run M ->
    mean (restricted cut) (T run) <= value M (beta P) (INR (T run)) (mean (shortfall P run cut) (T run)).
  Proof.
    intros static everywhere initial. pose proof (horizon_positive _ some).
    eapply Rle_trans; [now apply summed |]. unfold value.
    (* h' <= M *)
    assert (decrease P run <= M) by (unfold decrease; rewrite (static (T run)); now apply initial).
    apply Rmult_le_compat_l; [lra |]. apply Rplus_le_compat_r.
    apply Rmult_le_compat_r; [left; now apply Rinv_0_lt_compat | assumption].
  Qed.

  (** ** Links that are as good as the truncated step *)

  Hypotheses (smooth : Upper_smooth P) (descent : Descent P run admissible cut) (everywhere : HoldsEverywhere P).

  (** [L(W - [G]_r/beta) <= L(W) - |G|_{F,r}^2/(2 beta)] *)
  Lemma truncated_step_descends t : iteration run t ->
    L P t (truncated_step P run cut t) <= L P t (W run t) - restricted cut t / (2 * beta P).
  Proof.
    intros range. destruct (descent t range) as (_ & square).
    pose proof (proj2 smooth t _ _ (everywhere (W run t)) (everywhere (truncated_step P run cut t))) as above.
    revert above. unfold truncated_step, restricted. fold (gradient P run t). expand.
    rewrite (inner_sym _ (cut t) (gradient P run t)), (inner_sym _ (cut t) (W run t)), square. intros above.
    eapply Rle_trans; [exact above |]. apply Req_le. field; lra.
  Qed.

  Lemma best_links_are_never_worse : Best_links P run admissible -> Never_worse P run cut.
  Proof. intros best t range. apply best; [assumption |]. now apply descent. Qed.

  Lemma nothing_short t : Never_worse P run cut -> iteration run t -> shortfall P run cut t = 0.
  Proof.
    intros good range. pose proof (good t range). pose proof (truncated_step_descends t range).
    unfold shortfall, fall. apply Rmax_left. lra.
  Qed.
End Chain.

Theorem ChainTelescoped : telescoped.
Proof. intros E P run cut some bent static. now apply summed. Qed.

Theorem ChainBound : statement.
Proof.
  intros E P run admissible cut M some smooth bent initial descent static everywhere chain. now apply summed_and_closed.
Qed.

Theorem ChainMinimisers : minimisers.
Proof.
  intros E P run admissible cut M some smooth bent initial descent static everywhere chain good.
  assert (never_worse : Never_worse P run cut) by (destruct good; [| eapply best_links_are_never_worse]; eassumption).
  assert (nothing : forall t, iteration run t -> shortfall P run cut t = 0)
    by (intros; eapply nothing_short; eassumption).
  split; [exact nothing |].
  replace 0 with (mean (shortfall P run cut) (T run)); [now apply summed_and_closed |].
  unfold mean. rewrite (sum_ext _ (fun _ => 0)) by exact nothing. rewrite sum_constant. unfold Rdiv. ring.
Qed.

(** ** Jensen for the root *)

Lemma square_of_a_mean f n : (1 <= n)%nat -> mean f n ^ 2 <= mean (fun t => f t ^ 2) n.
Proof.
  intros some. pose proof (horizon_positive _ some) as positive. set (m := mean f n).
  (* 0 <= sum (f - m)^2 = sum f^2 - n m^2 *)
  assert (spread : 0 <= sum (fun t => f t ^ 2 - 2 * m * f t + m ^ 2) n).
  { apply sum_nonneg. intros t _. replace (f t ^ 2 - 2 * m * f t + m ^ 2) with ((f t - m) ^ 2) by ring. apply pow2_ge_0. }
  rewrite sum_plus, sum_minus, sum_scale, sum_constant, (sum_is_mean f n some) in spread. fold m in spread.
  unfold mean at 1. apply Rmult_le_reg_r with (INR n); [assumption |].
  replace (sum (fun t => f t ^ 2) n / INR n * INR n) with (sum (fun t => f t ^ 2) n) by (field; lra). lra.
Qed.

Lemma mean_of_roots f n : (1 <= n)%nat -> (forall t, 0 <= f t) -> mean (fun t => sqrt (f t)) n <= sqrt (mean f n).
Proof.
  intros some above. eapply Rle_trans; [apply Rle_abs |]. rewrite <- sqrt_Rsqr_abs. apply sqrt_le_1_alt.
  rewrite Rsqr_pow2. eapply Rle_trans; [now apply square_of_a_mean |]. apply Req_le. unfold mean. f_equal.
  apply sum_ext. intros t _. now apply pow2_sqrt.
Qed.

Theorem ChainMeanRoot : mean_root.
Proof.
  intros E P run admissible cut M some smooth bent initial descent static everywhere chain.
  eapply Rle_trans; [apply mean_of_roots; [assumption | intros t; apply inner_nonneg] |].
  apply sqrt_le_1_alt. now apply summed_and_closed.
Qed.
