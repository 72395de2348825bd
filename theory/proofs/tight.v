(** Theorems whose values cannot be lowered: A, B, D, E and F.

    Each theorem is written once more with its right-hand side left open, [..._with value]. What it says is checked to be that
    very theorem for its own [value]; and any other [value] for which it held would have to be as large as stated here. Had the
    hypotheses contradicted each other, it would hold for every [value], however small. *)

From FrankWolfe Require Import setting assumptions lemmas huber line valleys triangle.
From FrankWolfe Require fixed_step anytime short_step drift chain.

(** * Theorem A *)

Definition fixed_step_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma fixed_step_is_that : fixed_step.statement = fixed_step_with fixed_step.value.
Proof. reflexivity. Qed.

(** For one iteration and any constants. *)
Definition fixed_step_is_tight : Prop :=
  forall value, fixed_step_with value -> forall M b D, 0 < M -> 0 <= b -> 0 < D ->
  fixed_step.value M (b * D ^ 2) 1 <= value M (b * D ^ 2) 1.

(** For any number of iterations, without curvature. *)
Definition fixed_step_is_tight_for_linear_losses : Prop :=
  forall value, fixed_step_with value -> forall M n, 0 < M -> (1 <= n)%nat ->
  fixed_step.value M 0 (INR n) <= value M 0 (INR n).

Definition fixed_step_telescoped_with (value : R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D e : R),
  Setting P run -> Diameter P D ->
  Static P -> FrankWolfeStep P run true -> ConstantStep P run false e ->
  mean (gap run) (T run) <= value (decrease P run) (beta P * D ^ 2) e (INR (T run)) + mean (eps run) (T run).

Lemma fixed_step_telescoped_is_that :
  fixed_step.telescoped = fixed_step_telescoped_with (fun decrease C e T => decrease / (e * T) + C * e / 2).
Proof. reflexivity. Qed.

(** With curvature and for any number of iterations: whole steps that bounce from end to end and never fall. *)
Definition fixed_step_telescoped_is_tight : Prop :=
  forall value, fixed_step_telescoped_with value -> forall b D n, 0 <= b -> 0 < D -> (1 <= n)%nat ->
  0 / (1 * INR n) + b * D ^ 2 * 1 / 2 <= value 0 (b * D ^ 2) 1 (INR n).

(** * Theorem B *)

Definition anytime_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D Mo : R),
  Setting P run -> Diameter P D -> Oscillation P run Mo ->
  Static P -> FrankWolfeStep P run true -> AnytimeStep run Mo (beta P * D ^ 2) ->
  mean (gap run) (T run) <= value Mo (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma anytime_is_that : anytime.statement = anytime_with anytime.value.
Proof. reflexivity. Qed.

(** For one iteration, a whole step. *)
Definition anytime_is_tight : Prop :=
  forall value, anytime_with value -> forall Mo b D, 0 < Mo -> 0 <= b -> 0 < D -> b * D ^ 2 <= Mo ->
  anytime.value Mo (b * D ^ 2) 1 <= value Mo (b * D ^ 2) 1.

Definition anytime_is_tight_for_linear_losses : Prop :=
  forall value, anytime_with value -> forall Mo n, 0 < Mo -> (1 <= n)%nat ->
  anytime.value Mo 0 (INR n) <= value Mo 0 (INR n).

(** * Theorem D *)

Definition short_step_with (value : R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M : R),
  Setting P run -> Diameter P D -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  mean (gap run) (T run) <= value M (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma short_step_is_that : short_step.statement = short_step_with short_step.value.
Proof. reflexivity. Qed.

Definition short_step_is_tight : Prop :=
  forall value, short_step_with value -> forall M b D, 0 < M -> 0 <= b -> 0 < D ->
  short_step.value M (b * D ^ 2) 1 <= value M (b * D ^ 2) 1.

Definition short_step_is_tight_for_linear_losses : Prop :=
  forall value, short_step_with value -> forall M n, 0 < M -> (1 <= n)%nat ->
  short_step.value M 0 (INR n) <= value M 0 (INR n).

(** * Theorem E *)

Definition drift_with (value : R -> R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M up down : R),
  Setting P run -> Diameter P D -> Initial_gap P run M -> drift.Drift P run up down ->
  FrankWolfeStep P run true -> FixedOrShortStep P run (best_fixed (M + up + down) (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M up down (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

Lemma drift_is_that : drift.statement = drift_with drift.value.
Proof. reflexivity. Qed.

(** For two iterations and any drift: both its halves are paid in full. *)
Definition drift_is_tight : Prop :=
  forall value, drift_with value -> forall M up down, 0 < M -> 0 <= up -> 0 <= down ->
  drift.value M up down 0 2 <= value M up down 0 2.

(** * Theorem F *)

Definition chain_with (value : R -> R -> R -> R -> R) : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (admissible : E -> Prop) (cut : nat -> E) (M : R),
  (1 <= T run)%nat -> Upper_smooth P -> 0 < beta P -> Initial_gap P run M -> chain.Descent P run admissible cut ->
  Static P -> HoldsEverywhere P -> ChainStep run admissible ->
  mean (chain.restricted cut) (T run) <= value M (beta P) (INR (T run)) (mean (chain.shortfall P run cut) (T run)).

Lemma chain_is_that : chain.statement = chain_with chain.value.
Proof. reflexivity. Qed.

(** For any number of links, none of which falls short. *)
Definition chain_is_tight : Prop :=
  forall value, chain_with value -> forall M b n, 0 < M -> 0 < b -> (1 <= n)%nat ->
  chain.value M b (INR n) 0 <= value M b (INR n) 0.

(** * Proof *)

(** What is left to say of a run whose oracle is exact. *)
Lemma without_shortfall {E : InnerProductSpace} (run : Run E) b :
  (forall t, eps run t = 0) -> mean (gap run) (T run) <= b + mean (eps run) (T run) ->
  mean (gap run) (T run) <= b.
Proof.
  intros exact. replace (mean (eps run) (T run)) with 0; [lra |].
  unfold mean. rewrite (sum_ext _ (fun _ => 0)) by (intros; apply exact). rewrite sum_constant. unfold Rdiv. ring.
Qed.

(** ** Theorem A *)

Theorem FixedStepIsTight : fixed_step_is_tight.
Proof.
  intros value claim M b D HM Hb HD. unfold fixed_step.value. rewrite <- (worst_mean_gap M b D HM Hb HD).
  set (e := best_fixed M (b * D ^ 2) 1). apply without_shortfall; [reflexivity |].
  apply (claim line (worst_case M b D e) (worst_run M b D e) D M).
  - now apply worst_setting.
  - apply interval_diameter.
  - now apply worst_initial_gap.
  - apply parabola_is_static.
  - now apply worst_steps_or_lower.
  - now apply worst_constant_step.
Qed.

(** [phi_inverse y 0 = y] *)
Lemma phi_inverse_without_curvature y : 0 < y -> phi_inverse y 0 = y.
Proof. intros positive. unfold phi_inverse. destruct (Rle_dec y (0 / 2)); lra. Qed.

Lemma no_curvature slope D : beta (parabola slope 0 D) * D ^ 2 = 0.
Proof. simpl. ring. Qed.

Theorem FixedStepIsTightForLinearLosses : fixed_step_is_tight_for_linear_losses.
Proof.
  intros value claim M n HM some. pose proof (horizon_positive n some) as positive.
  unfold fixed_step.value. rewrite phi_inverse_without_curvature by now apply Rdiv_lt_0_compat.
  rewrite <- (linear_mean_gap M 1 n Rlt_0_1 some). apply without_shortfall; [reflexivity |].
  specialize (claim line (parabola (M / 1) 0 1) (walk_run (M / 1) 0 1 (fun _ => 1) n) 1 M).
  rewrite no_curvature in claim. apply claim.
  - apply linear_setting; lra || assumption.
  - apply interval_diameter.
  - apply linear_initial_gap; lra || assumption.
  - apply parabola_is_static.
  - apply linear_steps_or_lower; lra || assumption.
  - unfold best_fixed. destruct (Rle_dec (0 * INR _) (2 * M)); [| lra]. repeat split. lra.
Qed.

Theorem FixedStepTelescopedIsTight : fixed_step_telescoped_is_tight.
Proof.
  intros value claim b D n Hb HD some. pose proof (horizon_positive n some). set (r := D / 2).
  assert (0 < r) by (unfold r; lra). replace D with (2 * r) by (unfold r; lra).
  replace (0 / (1 * INR n) + b * (2 * r) ^ 2 * 1 / 2) with (2 * b * r ^ 2) by (field; lra).
  rewrite <- (bounce_mean_gap b r n some). apply without_shortfall; [reflexivity |].
  rewrite <- (bounce_never_falls b r n) at 1. apply (claim line (valley b r) (bounce_run b r n) (2 * r) 1).
  - now apply bounce_setting.
  - apply valley_diameter.
  - now intros t X.
  - apply exact_step_or_lower; [now apply bounce_setting | now apply bounce_steps].
  - repeat split. lra.
Qed.

(** ** Theorem B *)

Theorem AnytimeIsTight : anytime_is_tight.
Proof.
  intros value claim Mo b D HMo Hb HD large. pose proof (worst_curvature b D Hb).
  unfold anytime.value. destruct (Rle_dec (b * D ^ 2 * 1) Mo); [| lra].
  assert (whole : best_fixed Mo (b * D ^ 2) 1 = 1) by (unfold best_fixed; destruct (Rle_dec (b * D ^ 2 * 1) (2 * Mo)); lra).
  replace (Mo / 1 + b * D ^ 2 / 2) with (phi_inverse (Mo / 1) (b * D ^ 2))
    by (rewrite <- best_fixed_reaches_phi_inverse, whole by lra; field).
  rewrite <- (worst_mean_gap Mo b D HMo Hb HD).
  set (e := best_fixed Mo (b * D ^ 2) 1) in *. apply without_shortfall; [reflexivity |].
  apply (claim line (worst_case Mo b D e) (worst_run Mo b D e) D Mo).
  - now apply worst_setting.
  - apply interval_diameter.
  - now apply worst_oscillation.
  - apply parabola_is_static.
  - now apply worst_steps_or_lower.
  - intros t (first & last). simpl in last. replace t with 1%nat by lia. simpl eta. unfold anytime, worst_case.
    simpl. destruct (Rle_dec _ Mo); lra.
Qed.

Theorem AnytimeIsTightForLinearLosses : anytime_is_tight_for_linear_losses.
Proof.
  intros value claim Mo n HMo some. pose proof (horizon_positive n some) as positive.
  unfold anytime.value. destruct (Rle_dec (0 * INR n) Mo); [| lra].
  replace (Mo / INR n + 0 / 2) with (Mo / INR n) by lra.
  rewrite <- (linear_mean_gap Mo 1 n Rlt_0_1 some). apply without_shortfall; [reflexivity |].
  specialize (claim line (parabola (Mo / 1) 0 1) (walk_run (Mo / 1) 0 1 (fun _ => 1) n) 1 Mo).
  rewrite no_curvature in claim. apply claim.
  - apply linear_setting; lra || assumption.
  - apply interval_diameter.
  - apply linear_oscillation; lra || assumption.
  - apply parabola_is_static.
  - apply linear_steps_or_lower; lra || assumption.
  - intros t _. unfold anytime. destruct (Rle_dec (0 * INR t) Mo); [reflexivity | lra].
Qed.

(** ** Theorem D *)

Theorem ShortStepIsTight : short_step_is_tight.
Proof.
  intros value claim M b D HM Hb HD. unfold short_step.value. rewrite <- (worst_mean_gap M b D HM Hb HD).
  set (e := best_fixed M (b * D ^ 2) 1). apply without_shortfall; [reflexivity |].
  apply (claim line (worst_case M b D e) (worst_run M b D e) D M).
  - now apply worst_setting.
  - apply interval_diameter.
  - now apply worst_initial_gap.
  - apply parabola_is_static.
  - now apply worst_steps_or_lower.
  - now apply worst_short_step.
Qed.

Theorem ShortStepIsTightForLinearLosses : short_step_is_tight_for_linear_losses.
Proof.
  intros value claim M n HM some. pose proof (horizon_positive n some) as positive.
  unfold short_step.value. rewrite phi_inverse_without_curvature by now apply Rdiv_lt_0_compat.
  rewrite <- (linear_mean_gap M 1 n Rlt_0_1 some). apply without_shortfall; [reflexivity |].
  specialize (claim line (parabola (M / 1) 0 1) (walk_run (M / 1) 0 1 (fun _ => 1) n) 1 M).
  rewrite no_curvature in claim. apply claim.
  - apply linear_setting; lra || assumption.
  - apply interval_diameter.
  - apply linear_initial_gap; lra || assumption.
  - apply parabola_is_static.
  - apply linear_steps_or_lower; lra || assumption.
  - apply linear_short_step; lra || assumption.
Qed.

(** ** Theorem E *)

Theorem DriftIsTight : drift_is_tight.
Proof.
  intros value claim M up down HM Hup Hdown. set (P := moving M up down). set (run := moving_run M up down).
  unfold drift.value. rewrite phi_inverse_without_curvature by lra. rewrite <- moving_mean_gap. fold run.
  apply without_shortfall; [reflexivity |]. replace 0 with (beta P * 2 ^ 2) by (simpl; ring).
  apply (claim plane P run 2 M up down).
  - now apply moving_setting.
  - apply triangle_diameter.
  - now apply moving_initial_gap.
  - exists (fun _ => up), (fun _ => down). split; [| simpl; lra].
    intros t X _ inside. pose proof (moving_drift M up down Hup Hdown t X inside). unfold P. lra.
  - now apply moving_steps.
  - left. unfold best_fixed. destruct (Rle_dec _ _) as [| above]; [| simpl in above; lra]. repeat split. lra.
Qed.

(** ** Theorem F *)

(** In one dimension nothing is cut off the gradient, and every number is a link. *)
Section One_dimension.
  Variables (b x : R) (n : nat).
  Hypotheses (b_positive : 0 < b) (some : (1 <= n)%nat).

  Local Notation P := (bowl b).
  Local Notation run := (one_link_run x n).
  Local Notation cut := (gradient P run).

  Lemma line_descent : chain.Descent P run (fun _ => True) cut.
  Proof. intros t _. now split. Qed.

  Lemma line_links : ChainStep run (fun _ => True).
  Proof. intros t _. exists (W run (S t) - W run t)%V. split; [exact I |]. simpl. ring. Qed.

  Lemma line_chain_short_of_nothing : mean (chain.shortfall P run cut) (T run) = 0.
  Proof.
    unfold mean. rewrite (sum_ext _ (fun _ => 0)).
    - rewrite sum_constant. unfold Rdiv. ring.
    - intros t range. apply (chain.nothing_short P run (fun _ => True)); try assumption.
      + apply bowl_is_smooth. lra.
      + exact line_descent.
      + now intros X.
      + intros s inside. apply every_link_ends_lowest; [lra | apply inside].
  Qed.

  Lemma line_chain_mean : mean (chain.restricted cut) (T run) = (b * x) ^ 2 / INR n.
  Proof.
    rewrite <- (one_link_mean_square b x n some). unfold mean. f_equal. apply sum_ext. intros t _.
    unfold chain.restricted, gradient. simpl. ring.
  Qed.
End One_dimension.

Theorem ChainIsTight : chain_is_tight.
Proof.
  intros value claim M b n HM Hb some. pose proof (horizon_positive n some). set (x := sqrt (2 * M / b)).
  assert (square : b * x ^ 2 / 2 = M).
  { unfold x. rewrite pow2_sqrt; [field; lra |]. left. apply Rdiv_lt_0_compat; lra. }
  replace (chain.value M b (INR n) 0) with ((b * x) ^ 2 / INR n) by (unfold chain.value; rewrite <- square; field; lra).
  rewrite <- (line_chain_mean b x n some), <- (line_chain_short_of_nothing b x n Hb).
  apply (claim line (bowl b) (one_link_run x n) (fun _ => True)); try assumption.
  - apply bowl_is_smooth. lra.
  - rewrite <- square. apply one_link_initial_gap; lra || assumption.
  - apply line_descent.
  - now intros t X.
  - now intros X.
  - apply line_links.
Qed.
